from __future__ import annotations

import dataclasses

import pytest

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.option_table import (
    GROUPS,
    OPTIONS,
    is_option,
    leaves,
    option_at,
    path_of,
)
from luthier.data_model.options.run_options import METHODS
from luthier.errors import UnknownKeyError


def test_every_field_of_every_part_is_an_option_once() -> None:
    fields = [
        (part.name, each.name)
        for part in dataclasses.fields(ExperimentOptions)
        for each in dataclasses.fields(getattr(ExperimentOptions(), part.name))
    ]
    assert sorted(fields) == sorted((option.part, option.name) for option in OPTIONS)
    paths = [option.path for option in OPTIONS]
    assert len(set(paths)) == len(paths)
    assert {option.group for option in OPTIONS} == set(GROUPS)


def test_options_are_found_by_path_and_other_names() -> None:
    assert option_at("training.lr").path == "training.learning_rate"
    assert is_option("environment.seed")
    assert not is_option("training.seed")


@pytest.mark.parametrize("method", METHODS)
def test_an_options_default_is_that_of_the_methods_experiment(method: str) -> None:
    defaults = ExperimentOptions.defaults(method)
    assert all(option.default(method) == defaults.value(option.path) for option in OPTIONS)


def test_a_name_without_its_group_has_one_path() -> None:
    assert path_of("lr") == "training.learning_rate"
    with pytest.raises(UnknownKeyError, match="did you mean 'learning_rate'"):
        path_of("learning_rat")


def test_leaves_are_paths_and_values() -> None:
    found = dict(leaves({"training": {"seed": 1}, "lora": None}))
    assert found == {"training.seed": 1}
