from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.experiment_file import (
    experiment_from_yaml,
    experiment_to_yaml,
    read_yaml_mapping,
)
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import InvalidInputError, UnknownKeyError

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["1e-4", "010", "1:30", "null", "~", "yes", "a: b", "# c", "", "\n\n", "0x1"]),
)


@given(marker=TEXTS, rate=st.floats(1e-30, 100))
def test_every_text_and_number_comes_back_as_it_was(marker: str, rate: float) -> None:
    options = ExperimentOptions().laid_over(
        {"dataset.text_prompt_start": marker, "training.learning_rate": rate}
    )
    for is_complete in (True, False):
        text = experiment_to_yaml(options, is_complete=is_complete)
        assert experiment_from_yaml(text) == options


def test_a_file_shows_groups() -> None:
    text = experiment_to_yaml(
        ExperimentOptions().laid_over({"training.num_epochs": 2}), is_complete=False
    )
    assert text == "general:\n  method: prompt_tuning\ntraining:\n  num_epochs: 2\n"


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match=r"tokenizer\.max_len"):
        experiment_from_yaml("tokenizer: {max_len: 3}")


@pytest.mark.parametrize("text", ["- a\n", "a: [", "a: 1\na: 2\n"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        experiment_from_yaml(text)
    file = tmp_path / "e.yml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=r"e\.yml"):
        read_yaml_mapping(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.yml' cannot be read"):
        read_yaml_mapping(tmp_path / "nowhere.yml")
