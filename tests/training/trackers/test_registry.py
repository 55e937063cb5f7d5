"""Trackers by name."""

import pytest

from luthier.data_model.options.training.reporting import TRACKERS as WORDS
from luthier.errors import InvalidInputError
from luthier.training.trackers.registry import TRACKERS, make_trackers


def test_the_options_know_every_tracker() -> None:
    assert tuple(TRACKERS) == WORDS


def test_trackers_come_in_order_and_once() -> None:
    names = [tracker.name for tracker in make_trackers(["wandb", "tensorboard", "wandb"])]
    assert names == ["wandb", "tensorboard"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'wandb'"):
        make_trackers(["wandbb"])
