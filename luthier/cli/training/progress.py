"""A training's progress on the terminal, as the server reports it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from luthier.client import Client, TrainingMetric, TrainingStatus

#: Where stderr is no terminal, one line for so many updates.
LINE_STEPS = 10


class TrainingProgress:
    """A bar with the loss; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=None, loss="-")
        self._last_step = 0

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
        self._bar.update(self._task, description=status.state.lower())
        for metric in metrics:
            if metric.name == "loss":
                self._show_step(metric)
            else:
                name = metric.name.replace("_", " ")
                self._say(f"epoch {metric.epoch + 1}: {name} {metric.value:.4f}")

    def _show_step(self, metric: TrainingMetric) -> None:
        loss = f"{metric.value:.4f}"
        self._bar.update(
            self._task, completed=metric.step, total=metric.num_steps or None, loss=loss
        )
        is_due = metric.step == metric.num_steps or metric.step - self._last_step >= LINE_STEPS
        if not self._console.is_terminal and is_due:
            self._say(f"step {metric.step}/{metric.num_steps}  loss {loss}")
            self._last_step = metric.step

    def _say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False)


def wait_with_progress(client: Client, training_id: str) -> TrainingStatus:
    """Show a training's progress until it has completed.

    Raises:
        TrainingFailedError: If it ended ERRORED.
        CancelledError: If it was cancelled.
    """
    with TrainingProgress() as progress:
        return client.wait(training_id, on_progress=progress.update)
