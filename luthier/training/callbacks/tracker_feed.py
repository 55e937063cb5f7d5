"""Feeds a tracker from a thread of its own: it can neither fail nor slow down a training."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

import alog

from luthier.training.callbacks.base import EpochEvent, StartEvent, StepEvent, TrainingCallback
from luthier.training.results import EvaluationPoint
from luthier.training.trackers.base import TrackedRun, Tracker

log = alog.use_channel(__name__)

#: Messages that wait for a slow tracker; further ones are dropped and counted.
_MAX_WAITING = 10_000
#: How long the end of a training waits for what is left.
_CLOSE_SECONDS = 10.0

_Message = tuple[Mapping[str, float], int]


class TrackerFeed(TrainingCallback):
    """Tells one tracker about losses, learning rate, gradient norm and metrics.

    The first error of the tracker, a missing package too, is logged, and it hears nothing more.

    Args:
        tracker: Fresh.
        run_folder: The training's; None if it has none.
        close_seconds: How long ``close`` waits for the tracker.
        max_waiting: Messages kept for it.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        run_folder: Path | None,
        close_seconds: float = _CLOSE_SECONDS,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._tracker = tracker
        self._run_folder = run_folder
        self._close_seconds = close_seconds
        self._waiting: queue.Queue[_Message | None] = queue.Queue(max_waiting)
        self._thread: threading.Thread | None = None
        self._num_dropped = 0
        self._is_closed = threading.Event()

    def on_start(self, event: StartEvent) -> None:
        """Start the thread, which starts the tracker."""
        options = event.options
        run = TrackedRun(
            project=options.tracker_project,
            name=self._run_folder.name if self._run_folder else options.tracker_project,
            folder=self._run_folder,
            settings={**dataclasses.asdict(options), "num_rows": event.num_rows},
        )
        self._thread = threading.Thread(
            target=self._feed, args=(run,), name=f"tracker-{self._tracker.name}", daemon=True
        )
        self._thread.start()

    def on_step(self, event: StepEvent) -> None:
        """Loss, learning rate and gradient norm."""
        values = {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/tokens_per_second": event.num_input_tokens / max(event.seconds, 1e-9),
        }
        if event.gradient_norm is not None:
            values["train/gradient_norm"] = event.gradient_norm
        self._tell(values, event.step)

    def on_evaluation(self, point: EvaluationPoint) -> None:
        """Every metric that has a value."""
        values = {"loss": point.value, **point.metrics}
        self._tell(
            {
                f"validation/{name}": value
                for name, value in values.items()
                if value is not None and math.isfinite(value)
            },
            point.step,
        )

    def on_epoch_end(self, event: EpochEvent) -> None:
        """The epoch's mean loss."""
        self._tell({"train/epoch_loss": event.loss, "train/epoch": event.epoch + 1}, event.step)

    def close(self) -> None:
        """Wait for the tracker, but not for ever."""
        if self._thread is None:
            return
        self._is_closed.set()
        self._put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            log.warning("a tracker is too slow and was left behind: %s", self._tracker.name)
        if self._num_dropped:
            log.warning(
                "a tracker was too slow: name=%s dropped=%d", self._tracker.name, self._num_dropped
            )
        self._thread = None

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._put((values, step))

    def _put(self, message: _Message | None) -> None:
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._num_dropped += message is not None

    def _feed(self, run: TrackedRun) -> None:
        """The thread: until the last message or the first error."""
        try:
            self._tracker.start(run)
            try:
                while (message := self._next()) is not None:
                    values, step = message
                    self._tracker.log(values, step=step)
            finally:
                self._tracker.finish()
        except Exception:  # the background task
            log.warning(
                "a tracker failed and hears nothing more: %s", self._tracker.name, exc_info=True
            )

    def _next(self) -> _Message | None:
        """The next message; None after the last one, even if there was no room to say so."""
        while True:
            try:
                return self._waiting.get(timeout=1.0)
            except queue.Empty:
                if self._is_closed.is_set():
                    return None
