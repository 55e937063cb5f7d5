"""What an update does: what is refused."""

import math

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_decay", math.nan, "'weight_decay' must be finite"),
        ("optimizer", "adamv", "'optimizer' must be one of adamw, adam"),
        ("adam_beta2", 1, "'adam_beta2' must be at most 0.99999999, got 1"),
        ("differential_learning_rate", 0, "must be greater than 0, got 0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
