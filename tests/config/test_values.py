"""Conversion of values and of the texts of variables to the types of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import pytest

from luthier.config.loader import load_config
from luthier.config.schema import Bounds
from luthier.config.values import bounds_of, converted, from_environment, shown, type_name
from luthier.errors import ConfigError

SmallInt = Annotated[int, Bounds(0, 9)]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, bool, True),
        (3, int, 3),
        (3, float, 3.0),
        ("a", str, "a"),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (3, SmallInt | Mapping[str, SmallInt], 3),
        ({"a": 3}, SmallInt | Mapping[str, SmallInt], {"a": 3}),
    ],
)
def test_values_of_the_right_type_pass(value, annotation, expected):
    result = converted("k", value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (1, bool, "'k' must be bool, got 1"),
        (True, int, "'k' must be int, got True"),
        (True, float, "'k' must be float, got True"),
        (None, int, "'k' must be int, got None"),
        (None, str, "'k' must be str, got None (put quotes around text)"),
        (float("inf"), float, "'k' must be a finite number, got inf"),
        ("a", tuple[str, ...], "'k' must be list of str, got 'a'"),
        ([1], tuple[str, ...], "'k[0]' must be str, got 1 (put quotes around text)"),
        ([], Mapping[str, int], "'k' must be mapping to int, got []"),
        ({"": 1}, Mapping[str, int], "'k' has the name ''"),
        ({"a": {"b": 10}}, Mapping[str, Mapping[str, SmallInt]], "'k.a.b' must be at most 9"),
        ("x", SmallInt | Mapping[str, SmallInt], "'k' must be int, got 'x'"),
    ],
)  # fmt: skip
def test_other_values_are_refused_by_name(value, annotation, message):
    with pytest.raises(ConfigError) as caught:
        converted("k", value, annotation)
    assert message in str(caught.value)


def test_text_of_a_variable_stays_text_where_text_is_wanted():
    assert from_environment("123", str) == "123"
    assert from_environment(" yes ", bool) is True
    assert from_environment("dunno", bool) == "dunno"
    assert from_environment("a,,b ", tuple[str, ...]) == ["a", "b"]


def test_long_values_are_cut_in_messages():
    assert len(shown("x" * 10_000)) < 100


def test_types_are_named_as_people_would():
    assert type_name(Mapping[str, SmallInt | Mapping[str, SmallInt]]) == (
        "mapping to int or mapping to int"
    )
    assert bounds_of(SmallInt) == (Bounds(0, 9),)
    assert bounds_of(int) == ()


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path):
    file = tmp_path / "c.yml"
    file.write_text("judge: {api_key: 1234567}")
    with pytest.raises(ConfigError, match=r"'judge\.api_key' must be str, got a int") as caught:
        load_config({"CONFIG_FILES": str(file)})
    assert "1234567" not in str(caught.value)
