"""How much and how fast: what is refused."""

import math

import pytest
from fixtures.refused_options import assert_refused

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import InvalidInputError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_epochs", -1, "'num_epochs' must be at least 0, got -1"),
        ("num_epochs", 10**9, "'num_epochs' must be at most 1000, got 1000000000"),
        ("num_epochs", True, "'num_epochs' must be int, got True"),
        ("num_epochs", 1.5, "'num_epochs' must be int, got 1.5"),
        ("learning_rate", -0.1, "'learning_rate' must be greater than 0, got -0.1"),
        ("learning_rate", 0, "'learning_rate' must be greater than 0, got 0"),
        ("learning_rate", math.nan, "'learning_rate' must be finite, got nan"),
        ("learning_rate", math.inf, "'learning_rate' must be finite, got inf"),
        ("learning_rate", 1e9, "'learning_rate' must be at most 100"),
        ("learning_rate", "0.3", "'learning_rate' must be a number, got '0.3'"),
        ("batch_size", 0, "'batch_size' must be at least 1, got 0"),
        ("batch_size", 10**6, "'batch_size' must be at most 1024"),
        ("accumulate_steps", 0, "'accumulate_steps' must be at least 1"),
        ("seed", -2, "'seed' must be at least -1"),
        ("seed", 2**70, "'seed' must be at most"),
        ("schedule", "linaer", "did you mean 'linear'"),
        ("warmup_ratio", 1.5, "'warmup_ratio' must be at most 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)


def test_two_kinds_of_warm_up_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="say the same thing"):
        TrainingOptions(warmup_steps=3, warmup_ratio=0.1).validate(TrainingLimits())
