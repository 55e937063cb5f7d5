"""The schedule against transformers' own."""

import pytest
import torch
from transformers import get_scheduler

from luthier.data_model.options.training_options import TrainingOptions
from luthier.training.optimization.schedule import learning_rate_at


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("num_warmup", [0, 3])
def test_the_schedule_is_that_of_transformers_stepped_per_update(
    schedule: str, num_warmup: int
) -> None:
    options = TrainingOptions(learning_rate=0.5, schedule=schedule, warmup_steps=num_warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup, 10)
    for update in range(10):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(update, num_updates=10, options=options) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_the_linear_schedule_reaches_almost_nothing_in_the_last_update() -> None:
    options = TrainingOptions(learning_rate=1.0)
    assert learning_rate_at(0, num_updates=4, options=options) == 1.0
    assert learning_rate_at(3, num_updates=4, options=options) == 0.25


def test_a_warm_up_can_be_a_share_of_all_updates() -> None:
    options = TrainingOptions(learning_rate=1.0, warmup_ratio=0.25)
    rates = [learning_rate_at(update, num_updates=8, options=options) for update in range(3)]
    assert rates == [0.0, 0.5, 1.0]


def test_a_warm_up_in_epochs_may_end_between_two_updates() -> None:
    options = TrainingOptions(learning_rate=1.0, warmup_epochs=0.25, schedule="constant")
    rates = [
        learning_rate_at(update, num_updates=20, options=options, updates_per_epoch=10)
        for update in range(5)
    ]
    assert rates == [0.0, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_never_falls_below_its_floor(schedule: str) -> None:
    options = TrainingOptions(learning_rate=1.0, schedule=schedule, min_learning_rate_ratio=0.1)
    rates = [learning_rate_at(update, num_updates=50, options=options) for update in range(50)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
