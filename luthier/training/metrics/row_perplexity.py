"""The mean of the rows' perplexities."""

from __future__ import annotations

from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.metrics.loss import Loss
from luthier.training.metrics.perplexity import exponential

_LOSS = Loss()


class RowPerplexity(Metric):
    """e to the power of each row's mean loss, averaged: every row weighs the same.

    Source:
        H2O LLM Studio's ``Perplexity``. At least ``perplexity`` if all rows are of one length.
    """

    name: ClassVar[str] = "row_perplexity"
    higher_is_better: ClassVar[bool] = False

    def of_row(self, row: ScoredRow) -> float:
        """Of the row's label tokens."""
        return exponential(_LOSS.of_row(row))
