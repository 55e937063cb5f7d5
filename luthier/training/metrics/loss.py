"""Cross-entropy per label token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow


class Loss(Metric):
    """Mean cross-entropy in nats; for all rows over all their label tokens."""

    name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def of_row(self, row: ScoredRow) -> float:
        """The mean over the row's label tokens."""
        return row.loss_sum / row.num_label_tokens

    def of_all(self, rows: Sequence[ScoredRow]) -> float:
        """The mean over all label tokens: long rows weigh more."""
        return sum(row.loss_sum for row in rows) / sum(row.num_label_tokens for row in rows)
