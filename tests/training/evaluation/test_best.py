"""Which evaluation was best."""

import math

import pytest
import torch

from luthier.training.evaluation.best import BestSoFar


@pytest.mark.parametrize(
    ("higher_is_better", "values", "best_step"),
    [
        (False, [3.0, 2.0, 2.0, 4.0], 2),
        (True, [3.0, 2.0, 5.0, 5.0], 3),
        (False, [math.nan, 2.0, math.nan], 2),
        (False, [None, math.inf], None),
    ],
)
def test_the_first_of_the_best_values_counts_and_what_is_no_number_never_does(
    higher_is_better: bool, values: list[float | None], best_step: int | None
) -> None:
    best = BestSoFar(higher_is_better=higher_is_better)
    for step, value in enumerate(values, start=1):
        best.look_at(value, step=step)
    assert best.step == best_step


def test_evaluations_without_gain_are_counted() -> None:
    best = BestSoFar()
    for step, value in enumerate([1.0, 0.85, 0.85, None, 0.9]):
        best.look_at(value, step=step)
    assert (best.value, best.num_evaluations_since) == (0.85, 3)


def test_kept_parameters_come_back() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    best = BestSoFar()
    best.put_back({"p": parameter})
    best.keep({"p": parameter})
    with torch.no_grad():
        parameter.zero_()
    best.put_back({"p": parameter})
    assert parameter.tolist() == [1.0, 1.0]
