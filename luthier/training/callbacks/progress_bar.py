"""A progress bar on stderr."""

from __future__ import annotations

import sys
from typing import NoReturn, TextIO

from tqdm import tqdm

from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.results import EvaluationPoint


class ProgressBar(TrainingCallback):
    """Batches done, time left, epoch, last loss and last validation loss.

    Args:
        stream: Where to draw; stderr if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: tqdm[NoReturn] | None = None
        self._shown: dict[str, str] = {}
        self._num_epochs = 0

    def on_start(self, event: StartEvent) -> None:
        """Draw the empty bar."""
        self._num_epochs = event.options.num_epochs
        self._bar = tqdm(
            total=event.num_batches,
            initial=event.first_batch,
            unit="batch",
            file=self._stream or sys.stderr,
        )
        self._describe_epoch(event.first_epoch)

    def on_batch(self, event: BatchEvent) -> None:
        """Move on by one."""
        if self._bar is not None:
            self._bar.update()

    def on_step(self, event: StepEvent) -> None:
        """Show the loss."""
        self._show("loss", event.loss)

    def on_evaluation(self, point: EvaluationPoint) -> None:
        """Show the validation loss."""
        self._show("validation", point.value)

    def on_epoch_end(self, event: EpochEvent) -> None:
        """Name the next epoch."""
        self._describe_epoch(min(event.epoch + 1, self._num_epochs - 1))

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _describe_epoch(self, epoch: int) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch + 1}/{self._num_epochs}", refresh=False)

    def _show(self, name: str, value: float) -> None:
        if self._bar is not None:
            self._shown[name] = f"{value:.4f}"
            self._bar.set_postfix(self._shown, refresh=False)
