"""How many label tokens are the model's first choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class TokenAccuracy(Metric):
    """The share of label tokens that are the most probable after the reference so far."""

    name: ClassVar[str] = "token_accuracy"
    higher_is_better: ClassVar[bool] = True

    def of_row(self, row: ScoredRow) -> float:
        """Of the row's label tokens."""
        return row.num_correct_tokens / row.num_label_tokens

    def of_all(self, rows: Sequence[ScoredRow]) -> float:
        """Of all label tokens."""
        return sum(row.num_correct_tokens for row in rows) / sum(
            row.num_label_tokens for row in rows
        )
