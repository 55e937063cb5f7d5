"""Dataset settings are checked one by one and together."""

import dataclasses
from typing import Any

import pytest

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import InvalidInputError


def test_the_defaults_are_valid_and_every_field_says_what_it_means() -> None:
    DatasetOptions().validate()
    for field in dataclasses.fields(DatasetOptions):
        assert field.metadata["setting"].meaning.endswith(".")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"validation_size": 1.5}, "'validation_size' must be at most 0.95"),
        ({"validation_size": float("nan")}, "finite"),
        ({"data_sample": 0}, "'data_sample' must be at least 0.001"),
        ({"data_sample_choice": ("Test",)}, "'data_sample_choice' must be of Train, Validation"),
        ({"prompt_column": "a"}, "'prompt_column' must be a list of at most 100 names, got 'a'"),
        ({"prompt_column": tuple(map(str, range(101)))}, "at most 100 names, got 101"),
        ({"prompt_column": ("a", "a"), "answer_column": "b"}, "twice"),
        ({"prompt_column": ("a",)}, "needs 'answer_column'"),
        ({"answer_column": "a"}, "needs 'prompt_column'"),
        ({"prompt_format": "chatml"}, "must be one of auto"),
        ({"chat_template": "x", "prompt_format": "markers"}, "has no use"),
        ({"only_last_answer": True, "mask_prompt_labels": False}, "needs 'mask_prompt_labels'"),
        ({"validation_strategy": "custom"}, "needs 'validation_dataframe'"),
        ({"validation_dataframe": "v.csv"}, "make it custom"),
        ({"id_column": "id"}, "without 'parent_id_column'"),
        ({"parent_id_column": "p"}, "needs 'prompt_column'"),
        ({"system_column": "s"}, "needs 'prompt_column'"),
        ({"max_length": 4}, "at least 8"),
        ({"padding_quantile": 0.0}, "at least 0.01"),
        ({"token_mask_probability": 1.0}, "at most 0.9"),
        ({"neftune_noise_alpha": -1.0}, "at least 0"),
        ({"number_of_workers": True}, "must be int"),
        ({"text_prompt_start": "<\ud83d>"}, "'text_prompt_start' is no valid text: .* character 1"),
        ({"chat_template": "\ud83d"}, "'chat_template' is no valid text"),
        ({"chatbot_name": "\ud83d"}, "'chatbot_name' is no valid text"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DatasetOptions(**given).validate()
