"""A tracker hears everything, and neither its errors nor its slowness reach the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.tracker_feed import TrackerFeed
from luthier.training.loop import tune
from luthier.training.results import TrainingResult
from luthier.training.trackers.base import TrackedRun, Tracker

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(4)]
OPTIONS = TrainingOptions(
    num_epochs=2, learning_rate=0.01, batch_size=2, accumulate_steps=1, tracker_project="mine"
)


class _Recorder(Tracker):
    """Writes down what it is told; fails or sleeps where it is asked to."""

    name = "recorder"

    def __init__(self, *, fails_in: str = "", sleep_seconds: float = 0.0) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[str] = set()
        self._fails_in = fails_in
        self._sleep_seconds = sleep_seconds

    def start(self, run: TrackedRun) -> None:
        self._hear("start", run)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        time.sleep(self._sleep_seconds)
        self._hear("log", (dict(values), step))

    def finish(self) -> None:
        self._hear("finish", None)

    def _hear(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        self.threads.add(threading.current_thread().name)
        if name == self._fails_in:
            raise RuntimeError(f"no {name} today")


def _tune(base: BaseModel, feed: TrackerFeed) -> TrainingResult:
    adapter = SoftPrompt(torch.ones(2, base.hidden_size), kind="causal", places=("decoder",))
    return tune(base, adapter, RECORDS, validation=RECORDS[:2], options=OPTIONS, callbacks=[feed])


def test_a_tracker_hears_of_every_step_and_metric_in_order(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    tracker = _Recorder()
    result = _tune(tiny_causal_base, TrackerFeed(tracker, run_folder=tmp_path / "run-7"))
    assert [name for name, _ in tracker.calls] == ["start", *["log"] * 8, "finish"]
    run = tracker.calls[0][1]
    assert (run.project, run.name, run.settings["batch_size"]) == ("mine", "run-7", 2)
    told = [what for name, what in tracker.calls if name == "log"]
    assert [step for _, step in told] == [1, 2, 2, 2, 3, 4, 4, 4]
    losses = [values["train/loss"] for values, _ in told if "train/loss" in values]
    assert losses == [point.value for point in result.losses]
    validation = [values["validation/loss"] for values, _ in told if "validation/loss" in values]
    assert validation == [point.value for point in result.validation_losses]
    assert tracker.threads == {"tracker-recorder"}


@pytest.mark.parametrize("place", ["start", "log", "finish"])
def test_an_error_is_logged_once_and_the_training_goes_on(
    place: str, tiny_causal_base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = _Recorder(fails_in=place)
    with caplog.at_level(logging.WARNING):
        result = _tune(tiny_causal_base, TrackerFeed(tracker, run_folder=None))
    assert result.num_steps == 4
    messages = [each.getMessage() for each in caplog.records if "tracker" in each.getMessage()]
    assert messages == ["a tracker failed and hears nothing more: recorder"]


def test_a_slow_tracker_does_not_hold_up_the_training(
    tiny_causal_base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = _Recorder(sleep_seconds=0.6)
    feed = TrackerFeed(tracker, run_folder=None, close_seconds=0.05, max_waiting=2)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        result = _tune(tiny_causal_base, feed)
    assert result.num_steps == 4
    # Eight messages of 0.6 seconds: had the training waited, it would have taken 4.8.
    assert time.monotonic() - started < 3.0
    messages = [each.getMessage() for each in caplog.records]
    assert "a tracker is too slow and was left behind: recorder" in messages
    assert any(message.startswith("a tracker was too slow: name=recorder") for message in messages)


def test_a_run_that_never_started_closes_in_silence() -> None:
    tracker = _Recorder()
    TrackerFeed(tracker, run_folder=None).close()
    assert tracker.calls == []
