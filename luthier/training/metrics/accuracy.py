"""How many rows get the right class."""

from __future__ import annotations

from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class Accuracy(Metric):
    """The share of rows whose most probable class is the right one."""

    name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def of_row(self, row: ScoredRow) -> float:
        """1 or 0."""
        return float(row.generated == row.reference)
