import pytest

from luthier.data_model.options.prompt_encoder import PromptEncoderOptions, encoder_options
from luthier.data_model.options.prompt_words import TuningType
from luthier.data_model.tuning import TuningConfig
from luthier.errors import InvalidInputError


def test_the_defaults_can_be_meant():
    PromptEncoderOptions().validate()
    PromptEncoderOptions("LSTM", 64, 3, 0.1, True).validate()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reparameterization_type": "LSTN"}, "'encoder_reparameterization_type' .* 'LSTM'"),
        ({"hidden_size": 0}, "'encoder_hidden_size'.*1"),
        ({"hidden_size": 10**9}, "'encoder_hidden_size'"),
        ({"num_layers": 0}, "'encoder_num_layers'"),
        ({"num_layers": True}, "'encoder_num_layers'"),
        ({"dropout": 1.0}, "'encoder_dropout'"),
        ({"dropout": float("nan")}, "'encoder_dropout'"),
        ({"prefix_projection": "yes"}, "'prefix_projection'"),
    ],
)
def test_what_no_network_can_be_made_of_is_refused(given, message):
    with pytest.raises(InvalidInputError, match=message):
        PromptEncoderOptions(**given).validate()


def test_the_network_of_a_prompt_is_read_from_the_tuning_config() -> None:
    config = TuningConfig(
        num_virtual_tokens=4,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=12,
        encoder_num_layers=0,
    )
    options = encoder_options(config, TuningType.P_TUNING)
    assert (options.reparameterization_type, options.hidden_size, options.num_layers) == (
        "LSTM", 12, 2,
    )  # fmt: skip
    projected = TuningConfig(prefix_projection=True, encoder_hidden_size=12)
    assert encoder_options(projected, TuningType.PREFIX_TUNING).prefix_projection


@pytest.mark.parametrize(
    ("given", "tuning_type", "message"),
    [
        ({"encoder_hidden_size": 12}, "PROMPT_TUNING", "no use with tuning type PROMPT_TUNING"),
        ({"prefix_projection": True}, "P_TUNING", "'tuning_config.prefix_projection' has no use"),
        ({"encoder_hidden_size": 12}, "PREFIX_TUNING", "without 'prefix_projection'"),
        ({"encoder_dropout": 0.1}, "PREFIX_TUNING", "'tuning_config.encoder_dropout' has no use"),
        ({"encoder_reparameterization_type": "CNN"}, "P_TUNING", "must be one of MLP, LSTM"),
    ],
)
def test_a_network_that_cannot_be_meant_is_refused(given, tuning_type, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        encoder_options(TuningConfig(**given), TuningType(tuning_type))
