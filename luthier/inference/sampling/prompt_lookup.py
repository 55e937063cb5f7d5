"""Speculation without a second model: what followed the last tokens before may follow them again.

Where an answer copies from its prompt or repeats itself, a step checks several tokens for little
more than the price of one. The tokens are those that would have come one by one: each is chosen
from logits computed after the tokens chosen before it, and what was guessed wrong is thrown away.

Source:
    Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding
"""

from __future__ import annotations

import dataclasses

from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.sampling.seen_ngrams import SeenNgrams


class PromptLookup:
    """Adds guesses to the slices of a step.

    Args:
        memory: Where guessed tokens need room.
        max_tokens: Guesses per row and step, at most; 0 is none.
        max_rows: Rows of a step with guesses, at most. With more its time goes by tokens, not by
            weights, and a wrong guess costs.
    """

    def __init__(self, memory: KvMemory, *, max_tokens: int, max_rows: int) -> None:
        self._memory = memory
        self._max_rows = max_rows
        self._max_tokens = max_tokens

    def with_drafts(self, slices: list[RowSlice]) -> list[RowSlice]:
        """Lengthen the slices of greedy rows by tokens that may come; may move ranges.

        Args:
            slices: Of the next step.

        Returns:
            The same, with ``drafted`` tokens where there is a guess and room for it.
        """
        if not self._max_tokens or len(slices) > self._max_rows:
            return slices
        return [self._with_draft(each) for each in slices]

    def _with_draft(self, each: RowSlice) -> RowSlice:
        row = each.row
        is_decoding = each.count == 1 and each.reaches_end and not row.reports_prompt
        if not is_decoding or row.is_encoded or row.is_beam or not row.sequence.is_greedy:
            return each
        num_left = row.largest_size - row.num_positions
        num_guesses = min(self._max_tokens, row.max_drafted, num_left - 1)
        # After a wrong guess only a longer match is worth another.
        min_match = 2 if row.max_drafted > 1 else 3
        drafted = tuple(_seen_by(row).continuation(num_guesses, min_match=min_match))
        if not drafted or not self._memory.grow(row, row.num_positions + len(drafted)):
            return each
        return dataclasses.replace(each, count=1 + len(drafted), drafted=drafted)


def _seen_by(row: BatchRow) -> SeenNgrams:
    if row.seen is None:
        row.seen = SeenNgrams()
        row.seen.extend(row.sequence.prompt.token_ids)
    row.seen.extend(row.sequence.token_ids[len(row.seen) - len(row.sequence.prompt.token_ids) :])
    return row.seen
