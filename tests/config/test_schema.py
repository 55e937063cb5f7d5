"""The bounds of settings, and the lookups on the finished config."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from luthier.config import Config, load_config
from luthier.config.schema import Bounds, Choice, Pattern
from luthier.data_model.sampling import SamplingLimits


@pytest.mark.parametrize(
    ("bounds", "value", "violation"),
    [
        (Bounds(0, 5), 0, None),
        (Bounds(0, 5), 5, None),
        (Bounds(0, 5), 6, "must be at most 5"),
        (Bounds(0, 5), -1, "must be at least 0"),
        (Bounds(above=0), 0, "must be greater than 0"),
        (Bounds(above=0), 1e-9, None),
    ],
)
def test_bounds_include_their_ends(bounds, value, violation):
    assert bounds.violation(value) == violation


def test_choices_and_patterns_match_the_whole_text():
    assert Choice(("a", "b")).violation("a") is None
    assert Choice(("a", "b")).violation("ab") == "must be one of a, b"
    assert Pattern("a+", "some a").violation("aaa") is None
    assert Pattern("a+", "some a").violation("aaa\n") == "must be some a"


def test_inference_limits_agree_with_the_limits_that_requests_are_checked_against():
    ours = dataclasses.asdict(load_config({}).inference.limits)
    for field in dataclasses.fields(SamplingLimits):
        assert ours[field.name] == field.default, field.name


def test_config_survives_the_way_into_a_child_process():
    config = load_config({"VERBALIZERS": '{"m": "{{input}}"}'})
    assert pickle.loads(pickle.dumps(config)) == config


def test_tuned_models_are_saved_where_models_are_served_unless_told_otherwise():
    assert load_config({}).runtime.training_output_dir == "models"
    elsewhere = load_config({"RUNTIME_TRAINING_OUTPUT_DIR": "out"})
    assert elsewhere.runtime.training_output_dir == "out"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"__default__": -1}, None),
        ({"__default__": 0}, None),
        ({}, None),
        ({"__default__": 9}, 9),
        ({"__default__": 9, "m": {"__default__": 5}}, 5),
        ({"__default__": 9, "m": 4}, 4),
        ({"__default__": 9, "m": {"__default__": 5, "org/base": 3}}, 3),
        ({"__default__": 9, "m": {"__default__": 5, "org/base": -1}}, None),
        ({"__default__": 9, "m": {"other": 3}}, 9),
        ({"__default__": 9, "n": {"org/base": 3}}, 9),
    ],
)
def test_the_most_special_row_limit_wins(limits, expected):
    config: Config = dataclasses.replace(load_config({}), training_data_limit=limits)
    assert config.max_training_rows(module_id="m", base_model="org/base") == expected
