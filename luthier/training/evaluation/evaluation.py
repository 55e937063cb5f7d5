"""What an evaluation finds, and when there is one."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.metrics.loss import Loss
from luthier.training.results import EvaluationPoint


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation found.

    Args:
        point: The values of all rows.
        rows: What the model made of each row, in the order of the records.
        metrics: Asked for, in order; the first says what is best.
    """

    point: EvaluationPoint
    rows: tuple[ScoredRow, ...]
    metrics: tuple[Metric, ...]

    @property
    def value(self) -> float | None:
        """Of the first metric."""
        return self.point.metrics[self.metrics[0].name]


def is_evaluation_due(
    update: int, *, num_updates: int, updates_per_epoch: int, evaluation_epochs: float
) -> bool:
    """Whether there is an evaluation after an update.

    Args:
        update: Updates done, from 1.
        num_updates: Of the whole training; there is always one at its end.
        updates_per_epoch: Of one pass over the data.
        evaluation_epochs: Passes between two evaluations.

    Returns:
        True after each whole multiple of ``evaluation_epochs`` passes, or the update before it
        would have been crossed.

    Example:
        >>> due = dict(num_updates=8, updates_per_epoch=4, evaluation_epochs=0.75)
        >>> [update for update in range(1, 9) if is_evaluation_due(update, **due)]
        [3, 6, 8]
    """
    # A fraction of the decimal that was written, so that 0.1 times ten is one.
    interval = Fraction(repr(float(evaluation_epochs))) * updates_per_epoch
    return update == num_updates or update // interval > (update - 1) // interval


def evaluate_rows(
    rows: tuple[ScoredRow, ...], metrics: tuple[Metric, ...], *, epoch: int, step: int
) -> Evaluation:
    """The values of all metrics.

    Args:
        rows: At least one.
        metrics: At least one.
        epoch: Of the point.
        step: Of the point.

    Returns:
        The evaluation.
    """
    values: dict[str, float | None] = {metric.name: metric.of_all(rows) for metric in metrics}
    for metric in metrics:
        values |= metric.further_values(rows)
    point = EvaluationPoint(epoch, step, Loss().of_all(rows), values)
    return Evaluation(point, rows, metrics)
