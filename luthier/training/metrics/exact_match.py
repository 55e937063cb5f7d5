"""How many generated texts are the reference."""

from __future__ import annotations

from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class ExactMatch(Metric):
    """1 for a row whose text is the reference, but for space around it; else 0."""

    name: ClassVar[str] = "exact_match"
    higher_is_better: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    def of_row(self, row: ScoredRow) -> float | None:
        """1 or 0; None without text."""
        if row.generated is None:
            return None
        return float(row.generated.strip() == row.reference.strip())
