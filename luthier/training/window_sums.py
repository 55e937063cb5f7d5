"""What all processes together make of one window: its counts, its loss and its gradient.

Nothing is learned from what is no number: the error names the step and the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from luthier.errors import TrainingFailedError
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import MAX_LISTED_ROWS
from luthier.training.learner import MicroBatch
from luthier.training.objective import num_units
from luthier.training.optimization.updater import Updater
from luthier.training.processes.parallel import ProcessGroup


@dataclass(frozen=True)
class WindowCounts:
    """What an update learns from, in all processes together.

    Args:
        units: Label tokens, or rows for a sample average.
        rows: Of the window.
        input_tokens: Without padding and virtual tokens.
        label_tokens: That are learned.
    """

    units: int
    rows: int
    input_tokens: int
    label_tokens: int


class WindowSums:
    """Sums over the processes of one training, window by window.

    Args:
        updater: Holds the gradients.
        loss_function: ``token_average`` or ``sample_average``.
        group: The processes that train together; each calls each method.
    """

    def __init__(self, updater: Updater, *, loss_function: str, group: ProcessGroup) -> None:
        self._updater = updater
        self._loss_function = loss_function
        self._group = group

    def counts(self, batches: Sequence[TokenBatch], *, step: int) -> WindowCounts:
        """What the window's update learns from.

        Args:
            batches: This process's.
            step: Of the update, from 1.

        Returns:
            The counts.

        Raises:
            TrainingFailedError: If there is no label token in any of the rows.
        """
        own = (
            sum(num_units(batch, self._loss_function) for batch in batches),
            sum(len(batch.rows) for batch in batches),
            sum(batch.num_input_tokens for batch in batches),
            sum(batch.num_label_tokens for batch in batches),
        )
        counts = WindowCounts(*map(int, self._group.sum(own)))
        if counts.units == 0:
            rows = self._group.gather([row for batch in batches for row in batch.rows])
            raise TrainingFailedError(f"step {step}: no label token in {_named(rows)}")
        return counts

    def loss(
        self, loss_sums: Sequence[torch.Tensor], micro_batches: Sequence[MicroBatch], *, step: int
    ) -> float:
        """The losses of all processes, summed.

        Args:
            loss_sums: One per micro-batch.
            micro_batches: This process's, run.
            step: Of the update, from 1.

        Returns:
            The sum, finite.

        Raises:
            TrainingFailedError: If it is not finite; the gradients are dropped.
        """
        values = torch.stack(list(loss_sums)).tolist() if loss_sums else []
        bad = [
            row
            for each, value in zip(micro_batches, values, strict=True)
            if not math.isfinite(value)
            for row in each.batch.rows
        ]
        (loss_sum,) = self._group.sum([sum(values)])
        if not math.isfinite(loss_sum):
            self._updater.clear()
            self._refuse("loss", self._group.gather(bad), step)
        return loss_sum

    def gradient_norm(self, micro_batches: Sequence[MicroBatch], *, step: int) -> float | None:
        """The norm of the update's gradient, which every process has afterwards.

        Args:
            micro_batches: This process's, run.
            step: Of the update, from 1.

        Returns:
            A finite number; None if the loss's scale was too large, which it is not any more.

        Raises:
            TrainingFailedError: If it is not finite; the gradients are dropped.
        """
        self._updater.sum_gradients(self._group)
        norm = self._updater.gradient_norm()
        if math.isfinite(norm):
            return norm
        if not self._updater.loss_scale.lower():
            self._refuse("gradient", self._rows_without_gradient(micro_batches), step)
        return None

    def _rows_without_gradient(self, micro_batches: Sequence[MicroBatch]) -> list[int]:
        """The rows whose gradient is no number: the batches are run again, one by one."""
        bad: list[int] = []
        for micro_batch in micro_batches:
            self._updater.clear()
            micro_batch.backward()
            if not math.isfinite(self._updater.gradient_norm()):
                bad += micro_batch.batch.rows
        self._updater.clear()
        everything = [row for each in micro_batches for row in each.batch.rows]
        return self._group.gather(bad) or self._group.gather(everything)

    def _refuse(self, what: str, rows: Sequence[int], step: int) -> NoReturn:
        raise TrainingFailedError(
            f"step {step}: the {what} is not finite in {_named(rows)}; a lower learning_rate or "
            "another torch_dtype may help"
        )


def _named(rows: Sequence[int]) -> str:
    """The rows of a message: numbers of the first few."""
    listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS]))
    more = len(rows) - MAX_LISTED_ROWS
    return f"rows {listed} and {more} more" if more > 0 else f"rows {listed}"
