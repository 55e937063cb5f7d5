"""What the loop learns from: token ids with labels, and a report of what did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Positions with this label are not learned, as everywhere in torch and transformers.
IGNORED_LABEL = -100
#: How many row numbers a report or a message lists.
MAX_LISTED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized train record.

    A causal model has one sequence, with a label per token; a seq2seq model has two::

        causal    input_ids  source  source  target  EOS        seq2seq   input_ids  source
                  labels      -100    -100   target  EOS                  labels     target  EOS

    Args:
        row: Number of the record in its data, counted from 1.
        input_ids: Tokens that the model reads; the encoder's for a seq2seq model.
        labels: As long as ``input_ids`` for a causal model, else what the decoder writes.
    """

    row: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def num_label_tokens(self) -> int:
        """Tokens that are learned."""
        return sum(label != IGNORED_LABEL for label in self.labels)


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One example, and what had to be cut from its record.

    Args:
        example: Fits the base model.
        num_source_cut: Tokens cut of what is read only.
        num_target_cut: Tokens cut of what is learned.
    """

    example: Example
    num_source_cut: int = 0
    num_target_cut: int = 0


@dataclass(frozen=True)
class TruncationReport:
    """What was cut so that rows fit ``max_source_length`` and ``max_target_length``.

    Args:
        num_rows: Rows looked at.
        num_source_rows: Rows whose source was cut.
        num_source_tokens: Source tokens cut, over all rows.
        num_target_rows: Rows whose target was cut.
        num_target_tokens: Target tokens cut, over all rows; the end-of-sequence token never is.
        first_source_rows: Numbers of the first rows with a cut source, counted from 1.
        first_target_rows: Likewise for targets.
    """

    num_rows: int = 0
    num_source_rows: int = 0
    num_source_tokens: int = 0
    num_target_rows: int = 0
    num_target_tokens: int = 0
    first_source_rows: tuple[int, ...] = ()
    first_target_rows: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if every row fitted whole."""
        return self.num_source_rows == 0 and self.num_target_rows == 0

    def __str__(self) -> str:
        if self.is_empty:
            return f"all {self.num_rows} rows fit"
        parts = []
        for name, rows, tokens, first in (
            ("source", self.num_source_rows, self.num_source_tokens, self.first_source_rows),
            ("target", self.num_target_rows, self.num_target_tokens, self.first_target_rows),
        ):
            if rows:
                listed = ", ".join(map(str, first)) + (", …" if rows > len(first) else "")
                parts.append(f"{name} cut in {rows} rows by {tokens} tokens (rows {listed})")
        return f"of {self.num_rows} rows: " + "; ".join(parts)


class BatchChange(Protocol):
    """Changes rows before they are learned from."""

    def __call__(self, examples: Mapping[int, Example], *, epoch: int) -> list[Example]:
        """As many examples, in order; a function of the arguments alone."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Tokenized records, and what was cut from them.

    Args:
        examples: In the order of the records.
        truncation: What was cut.
        change: Changes the rows of a batch each time they are learned from, or None.
        drawn_options: What decides about such changes, name to value; part of what a training is.
        class_labels: What labels are numbers of, if they are no tokens.
    """

    examples: Sequence[Example]
    truncation: TruncationReport
    change: BatchChange | None = None
    drawn_options: Mapping[str, object] = field(default_factory=dict)
    class_labels: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int], *, epoch: int) -> list[Example]:
        """The rows of one batch, as they are learned from in one epoch.

        Args:
            indices: Of the examples.
            epoch: Number of the pass over the data, from 0.

        Returns:
            One example per index.
        """
        if self.change is None:
            return [self.examples[index] for index in indices]
        return self.change({index: self.examples[index] for index in indices}, epoch=epoch)

    @property
    def lengths(self) -> list[int]:
        """Tokens and labels per example: what batches of like length go by, [N]."""
        known: list[int] | None = getattr(self.examples, "lengths", None)
        if known is not None:
            return known
        return [len(example.input_ids) + len(example.labels) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)
