"""How well each class is found, rare ones as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class MacroF1(Metric):
    """The mean of the classes' F1: 2 · hits / (rows that are of it + rows taken for it).

    Over the classes that some row is of or was taken for, as scikit-learn's ``f1_score`` with
    ``average="macro"`` counts them.
    """

    name: ClassVar[str] = "macro_f1"
    higher_is_better: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def of_row(self, row: ScoredRow) -> float:
        """1 or 0: that of the row alone."""
        return float(row.generated == row.reference)

    def of_all(self, rows: Sequence[ScoredRow]) -> float:
        """Of all rows together."""
        names = {name for row in rows for name in (row.reference, row.generated)}
        return sum(_f1(rows, name) for name in names) / len(names)


def _f1(rows: Sequence[ScoredRow], name: str | None) -> float:
    num_hits = sum(row.reference == name == row.generated for row in rows)
    num_of_it = sum(row.reference == name for row in rows)
    num_taken_for_it = sum(row.generated == name for row in rows)
    return 2 * num_hits / (num_of_it + num_taken_for_it)
