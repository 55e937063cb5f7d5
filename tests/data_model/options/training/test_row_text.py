"""What is read of a row: what is refused."""

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_source_length", 0, "'max_source_length' must be at least 1"),
        ("max_source_length", 10**9, "'max_source_length' must be at most 32768"),
        ("max_target_length", -5, "'max_target_length' must be at least 1"),
        ("verbalizer", 3, "'verbalizer' must be a string"),
        ("verbalizer", None, "'verbalizer' must be a string"),
        ("verbalizer", "x" * 200_000, "'verbalizer' has 200000 characters"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
