"""Perplexity of all label tokens together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.metrics.loss import Loss

_LOSS = Loss()


def exponential(loss: float) -> float:
    """e to the power of ``loss``; infinite where that is no float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class Perplexity(Metric):
    """e to the power of the mean loss per label token, as in the literature.

    Its sibling ``row_perplexity`` is the mean of the rows' perplexities, as in H2O LLM Studio.
    """

    name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    def of_row(self, row: ScoredRow) -> float:
        """Of the row's label tokens."""
        return exponential(_LOSS.of_row(row))

    def of_all(self, rows: Sequence[ScoredRow]) -> float:
        """Of all label tokens."""
        return exponential(_LOSS.of_all(rows))
