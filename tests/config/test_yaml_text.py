"""The YAML of settings: strict where YAML 1.1 surprises."""

from __future__ import annotations

import math

import pytest

from luthier.config.yaml_text import parse_yaml
from luthier.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("10", 10),
        ("-0", 0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1e", "1e"),
        ("true", True),
        ("null", None),
        ('"1"', "1"),
        ('{"a": [1, 2.5, "x"]}', {"a": [1, 2.5, "x"]}),
    ],
)
def test_plain_scalars_read_as_people_expect(text, value):
    result = parse_yaml(text)
    assert result == value
    assert type(result) is type(value)


def test_infinity_and_nan_are_floats_for_the_bounds_to_refuse():
    assert parse_yaml("-.inf") == -math.inf
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "b: {a: 1, a: 2}", '{"a": 1, a: 2}'])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ConfigError, match="key 'a' stands twice"):
        parse_yaml(text)


def test_anchors_and_merge_keys_work():
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n"
    assert parse_yaml(text)["more"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.getcwd []",
        "!!python/name:os.system",
        "a: b: c",
        "a\0b",
        "- 1\n---\n- 2",
        "2026-13-45",
        "? [a]\n: 1",
    ],
)
def test_what_is_not_plain_data_is_refused(text):
    with pytest.raises(ConfigError):
        parse_yaml(text)
