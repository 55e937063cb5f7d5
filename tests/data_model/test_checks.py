"""Single values from outside are refused by name, value and limit."""

import math
from functools import partial

import pytest

from luthier.data_model.checks import (
    require_bool,
    require_int,
    require_names,
    require_number,
    require_text,
    require_unicode,
)
from luthier.errors import InvalidInputError


@pytest.mark.parametrize("value", [True, 1.0, "1", None, math.nan])
def test_what_is_no_int_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match=r"'n' must be int, got"):
        require_int("n", value)


def test_an_int_outside_its_bounds_is_refused_with_the_bound() -> None:
    assert require_int("n", 3, minimum=3, maximum=3) == 3
    with pytest.raises(InvalidInputError, match="'n' must be at least 3, got 2"):
        require_int("n", 2, minimum=3)
    with pytest.raises(InvalidInputError, match="'n' must be at most 3, got 4"):
        require_int("n", 4, maximum=3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match="'x' must be finite, got"):
        require_number("x", value)


@pytest.mark.parametrize("value", [True, "1", None, [1]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="'x' must be a number"):
        require_number("x", value)


def test_a_number_outside_its_bounds_is_refused_with_the_bound() -> None:
    assert require_number("x", 1, minimum=1, maximum=1) == 1.0
    with pytest.raises(InvalidInputError, match=r"'x' must be at least 1, got 0.5"):
        require_number("x", 0.5, minimum=1)
    with pytest.raises(InvalidInputError, match="'x' must be greater than 0, got 0"):
        require_number("x", 0, above=0)
    with pytest.raises(InvalidInputError, match=r"'x' must be at most 1, got 1.5"):
        require_number("x", 1.5, maximum=1)


def test_a_huge_value_is_not_quoted_whole() -> None:
    for bad in (
        lambda: require_int("n", 10**4000, maximum=1),
        lambda: require_int("n", "x" * 9999),
    ):
        with pytest.raises(InvalidInputError) as caught:
            bad()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_what_is_no_bool_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="'b' must be true or false"):
        require_bool("b", value)


def test_a_text_over_its_limit_is_refused_with_its_length() -> None:
    assert require_text("t", "abc", max_chars=3) == "abc"
    with pytest.raises(InvalidInputError, match="'t' has 4 characters, at most 3 are allowed"):
        require_text("t", "abcd", max_chars=3)
    with pytest.raises(InvalidInputError, match="'t' must be a string"):
        require_text("t", 3, max_chars=3)


def test_half_a_character_is_refused_with_its_place() -> None:
    assert require_unicode("t", "ü🙂\x00") == "ü🙂\x00"
    for refuse in (require_unicode, partial(require_text, max_chars=5)):
        with pytest.raises(InvalidInputError, match=r"'t' is no valid text: .* at character 2"):
            refuse("t", "ab\ud83d")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "'x' must be a list of names, got ..a.."),
        (("a", ""), r"'x\[1\]' must not be empty"),
        (("a", 3), r"'x\[1\]' must be"),
        (("a",) * 4, "'x' has 4 entries, at most 3 are allowed"),
        (("a" * 6,), r"'x\[0\]'"),
        (("a", "\ud83d"), r"'x\[1\]' is no valid text"),
    ],
)
def test_a_list_of_names_is_checked_entry_by_entry(values: object, message: str) -> None:
    assert require_names("x", ("a", "b"), max_count=3, max_chars=5) == ("a", "b")
    with pytest.raises(InvalidInputError, match=message):
        require_names("x", values, max_count=3, max_chars=5)
