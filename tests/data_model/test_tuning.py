"""What a tuning request says about its method."""

import pytest

from luthier.data_model.tuning import (
    PromptOutputModelType,
    PromptTuningInit,
    TrainingLimits,
    TuningConfig,
    TuningType,
    encoder_options,
    parse_init_method,
    parse_output_model_types,
    parse_tuning_type,
    validate_tuning_config,
)
from luthier.errors import InvalidInputError, NotSupportedError


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


def test_tuning_type_defaults_to_prompt_tuning() -> None:
    assert parse_tuning_type(None) is TuningType.PROMPT_TUNING
    assert parse_tuning_type("") is TuningType.PROMPT_TUNING
    assert parse_tuning_type("MULTITASK_PROMPT_TUNING") is TuningType.MULTITASK_PROMPT_TUNING
    assert parse_tuning_type(TuningType.PROMPT_TUNING) is TuningType.PROMPT_TUNING


@pytest.mark.parametrize("word", ["LORA", "prompt_tuning", "PROMPT_TUNNING"])
def test_a_wrong_tuning_type_is_refused_by_name(word: str) -> None:
    with pytest.raises(NotSupportedError, match=f"{word} tuning type not supported!"):
        parse_tuning_type(word)


def test_both_spellings_of_average_source_are_one_method() -> None:
    assert parse_init_method("AVERAGE_SOURCE") is PromptTuningInit.AVERAGE_SOURCE
    assert parse_init_method("AVERAGE_SOURCE_TASKS") is PromptTuningInit.AVERAGE_SOURCE
    assert parse_init_method(None) is PromptTuningInit.RANDOM


def test_only_the_source_methods_need_a_source() -> None:
    assert {method.name for method in PromptTuningInit if method.needs_source} == {
        "ONLY_SOURCE_SHARED",
        "AVERAGE_SOURCE",
        "EXACT_SOURCE_TASK",
    }


def test_a_wrong_init_method_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"Init method \[FOO\] not in allowed init methods"):
        parse_init_method("FOO")


def test_output_model_types_default_to_the_kind_of_base() -> None:
    assert parse_output_model_types(None, is_seq2seq=False) == (PromptOutputModelType.DECODER,)
    assert parse_output_model_types([], is_seq2seq=True) == (PromptOutputModelType.ENCODER,)


def test_a_seq2seq_base_takes_encoder_decoder_or_both_in_order() -> None:
    assert parse_output_model_types(["DECODER", "ENCODER", "DECODER"], is_seq2seq=True) == (
        PromptOutputModelType.ENCODER,
        PromptOutputModelType.DECODER,
    )


def test_output_model_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="not supported for base model type"):
        parse_output_model_types(["ENCODER"], is_seq2seq=False)
    with pytest.raises(InvalidInputError, match="'FOO' is not a valid PromptOutputModelType"):
        parse_output_model_types(["FOO"], is_seq2seq=True)
    with pytest.raises(InvalidInputError, match="must be a list"):
        parse_output_model_types("DECODER", is_seq2seq=True)


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
