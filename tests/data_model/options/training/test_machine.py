"""Where a training computes."""

import pytest
from fixtures.refused_options import assert_refused

from luthier.data_model.options.training_options import TrainingOptions


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_processes", 0, "'num_processes' must be at least 1, got 0"),
        ("num_processes", 10**6, "'num_processes' must be at most"),
        ("mixed_precision", "bf16", "'mixed_precision' must be one of off, bfloat16, float16"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)


def test_an_undecided_device_is_told_from_a_given_one() -> None:
    assert not TrainingOptions().is_device_given
    assert not TrainingOptions(device="__DETECT__").is_device_given
    assert TrainingOptions(device="cpu").is_device_given
