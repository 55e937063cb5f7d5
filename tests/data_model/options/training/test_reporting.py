"""Whom a training tells: what is refused."""

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("silence_progress_bars", "yes", "must be true or false"),
        ("trackers", ("mlfow",), "did you mean 'mlflow'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
