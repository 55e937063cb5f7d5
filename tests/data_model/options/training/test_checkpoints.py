"""When states are saved: what is refused."""

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("save_checkpoint", "bset", "did you mean 'best'"),
        ("checkpoint_time_share", 0, "'checkpoint_time_share' must be at least 1e-06, got 0"),
        ("save_every_seconds", -1, "'save_every_seconds' must be at least 0"),
        ("keep_checkpoints", 1.5, "'keep_checkpoints' must be int, got 1.5"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
