"""The words of prompt tuning, and what is no word of it."""

import pytest

from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
    parse_init_method,
    parse_output_model_types,
    parse_tuning_type,
)
from luthier.errors import InvalidInputError, NotSupportedError


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
