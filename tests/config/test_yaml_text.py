"""The YAML of settings: strict where YAML 1.1 surprises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from luthier.config.yaml_text import parse_yaml, read_yaml
from luthier.errors import ConfigError, InvalidInputError


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


def test_what_is_wrong_with_a_file_names_it_as_the_caller_does(tmp_path: Path) -> None:
    (tmp_path / "good.yml").write_text("rate: 1e-4", encoding="utf-8")
    (tmp_path / "latin.yml").write_bytes("größe: 1".encode("latin-1"))
    (tmp_path / "twice.yml").write_text("a: 1\na: 2", encoding="utf-8")
    assert read_yaml(tmp_path / "good.yml", called="it") == {"rate": 1e-4}
    with pytest.raises(ConfigError, match="it cannot be read: No such file"):
        read_yaml(tmp_path / "none.yml", called="it")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_yaml(tmp_path / "latin.yml", called="it")
    with pytest.raises(InvalidInputError, match="it: key 'a' stands twice") as caught:
        read_yaml(tmp_path / "twice.yml", called="it", error=InvalidInputError)
    assert type(caught.value) is InvalidInputError
