"""What a tuning request says about its prompt."""

import pytest

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.tuning import TuningConfig, validate_tuning_config
from luthier.errors import InvalidInputError


def test_tuning_config_has_the_peers_name_and_field_numbers() -> None:
    descriptor = TuningConfig._proto_class.DESCRIPTOR
    assert descriptor.full_name == "caikit_data_model.caikit_nlp.TuningConfig"
    assert {field.name: field.number for field in descriptor.fields} == {
        "num_virtual_tokens": 1,
        "prompt_tuning_init_text": 2,
        "prompt_tuning_init_method": 3,
        "prompt_tuning_init_source_model": 4,
        "output_model_types": 5,
        "encoder_reparameterization_type": 6,
        "encoder_hidden_size": 7,
        "encoder_num_layers": 8,
        "encoder_dropout": 9,
        "prefix_projection": 10,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TuningConfig(), "num_virtual_tokens not provided in tuning_config"),
        (TuningConfig(num_virtual_tokens=0), "num_virtual_tokens not provided"),
        (TuningConfig(num_virtual_tokens=-3), "must be at least 1, got -3"),
        (TuningConfig(num_virtual_tokens=10**9), "must be at most 1024, got 1000000000"),
        (TuningConfig(num_virtual_tokens=4, prompt_tuning_init_method="TEXT"), "init_text"),
        (
            TuningConfig(num_virtual_tokens=4, prompt_tuning_init_method="AVERAGE_SOURCE"),
            "prompt_tuning_init_source_model",
        ),
        (TuningConfig(num_virtual_tokens=4, prompt_tuning_init_method="FOO"), "FOO"),
        (
            TuningConfig(
                num_virtual_tokens=4,
                prompt_tuning_init_method="TEXT",
                prompt_tuning_init_text="half \ud83d",
            ),
            "'tuning_config.prompt_tuning_init_text' is no valid text: .* at character 5",
        ),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(config: TuningConfig, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        validate_tuning_config(config, TrainingLimits())


def test_a_complete_config_is_accepted() -> None:
    validate_tuning_config(
        TuningConfig(
            num_virtual_tokens=8,
            prompt_tuning_init_method="TEXT",
            prompt_tuning_init_text="Classify.",
        ),
        TrainingLimits(),
    )
