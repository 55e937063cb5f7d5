"""A training's progress on the terminal, as the server reports it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from luthier.client import Client, TrainingMetric, TrainingStatus

LOSS = "loss"


class TrainingProgress:
    """A bar with the loss; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=None, loss="-")
        self._last_line = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, status: TrainingStatus, metrics: list[TrainingMetric]) -> None:
        """Show a status and the metrics that are new; fits ``Client.wait``."""
        losses = [metric for metric in metrics if metric.name == LOSS]
        if not losses:
            self._bar.update(self._task, description=status.state.lower())
            return
        last = losses[-1]
        self._bar.update(
            self._task,
            description="tuning",
            completed=last.step,
            total=last.num_steps or None,
            loss=f"{last.value:.4f}",
        )
        if not self._console.is_terminal:
            self._print_line(last)

    def _print_line(self, metric: TrainingMetric) -> None:
        of = f"/{metric.num_steps}" if metric.num_steps else ""
        line = f"step {metric.step}{of}  epoch {metric.epoch:.2f}  loss {metric.value:.4f}"
        if line != self._last_line:
            print(line, file=sys.stderr, flush=True)
        self._last_line = line


def wait_with_progress(client: Client, training_id: str) -> TrainingStatus:
    """Show a training's progress until it has completed.

    Raises:
        TrainingFailedError: If it ended ERRORED.
        CancelledError: If it was cancelled.
    """
    with TrainingProgress() as progress:
        return client.wait(training_id, on_progress=progress.update)
