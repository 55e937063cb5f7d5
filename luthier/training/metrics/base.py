"""The contract of a metric: a number per held-out row, and one for all of them.

A metric sees what the model made of a row: its losses on the reference and, if it asks for that,
the text that it writes by itself. It changes nothing and keeps nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ScoredRow:
    """One held-out row, and what the model made of it.

    Args:
        row: Number of the record, counted from 1.
        loss_sum: Cross-entropies of its label tokens, added up, in nats.
        num_label_tokens: Of the row, at least 1.
        num_correct_tokens: Label tokens that were the model's first choice, each after the
            reference so far.
        input_text: What the model reads.
        reference: What it should write.
        generated: What it writes; None where no metric asks for text. The class that it takes the
            row for where it tells classes apart.
        choice: The model's first choice for the last label token.
    """

    row: int
    loss_sum: float
    num_label_tokens: int
    num_correct_tokens: int
    input_text: str
    reference: str
    generated: str | None = None
    choice: int | None = None


class Metric(ABC):
    """One way to say how well a model does."""

    #: Its word in options and files.
    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    #: Whether it compares generated text.
    needs_text: ClassVar[bool] = False
    #: Whether it compares classes, for models that tell them apart.
    needs_classes: ClassVar[bool] = False

    @abstractmethod
    def of_row(self, row: ScoredRow) -> float | None:
        """The value of one row; None where it has none, which is not 0."""

    def of_all(self, rows: Sequence[ScoredRow]) -> float | None:
        """The value of all rows, at least one: the mean of those that have one, unless the metric
        is defined otherwise. None if no row has one."""
        values = [value for row in rows if (value := self.of_row(row)) is not None]
        return sum(values) / len(values) if values else None

    def further_values(self, rows: Sequence[ScoredRow]) -> Mapping[str, float]:
        """What else it has to say of all rows, after ``of_all``: name to number."""
        return {}
