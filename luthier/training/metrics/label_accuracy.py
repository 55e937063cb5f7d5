"""How many generated labels are the right one."""

from __future__ import annotations

from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class LabelAccuracy(Metric):
    """1 for a row whose text names the reference, 0 otherwise: case, space and a last full stop
    do not count, because they do not make another label."""

    name: ClassVar[str] = "label_accuracy"
    higher_is_better: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    def of_row(self, row: ScoredRow) -> float | None:
        """1 or 0; None without text."""
        if row.generated is None:
            return None
        return float(_label(row.generated) == _label(row.reference))


def _label(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
