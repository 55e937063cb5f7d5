"""Speculation without a second model: what followed the last tokens before may follow them again.

Where an answer copies from its prompt or repeats itself, a step checks several tokens for little
more than the price of one. The tokens are those that would have come one by one: each is chosen
from logits computed after the tokens chosen before it, and what was guessed wrong is thrown away.
So a text stays what it is, drawn or not: a drawn token uses the random number of its place.

How many tokens are guessed follows from how well the text could be told so far: a step takes a bit
longer for each, and is spared for each that is right.

Source:
    Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding
"""

from __future__ import annotations

import dataclasses

from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.sampling.seen_ngrams import SeenNgrams

#: What a further token takes of the time of a step with one. SmolLM2-135M on one core: 0.04, and
#: something for looking guesses up; with other models and machines it may be more.
_TOKEN_COST = 0.06


class PromptLookup:
    """Adds guesses to the slices of a step.

    Args:
        memory: Where guessed tokens need room.
        max_tokens: Guesses per row and step, at most; 0 is none.
        max_rows: Rows of a step with guesses, at most.
    """

    def __init__(self, memory: KvMemory, *, max_tokens: int, max_rows: int) -> None:
        self._memory = memory
        self._max_rows = max_rows
        self._max_tokens = max_tokens

    def with_drafts(self, slices: list[RowSlice]) -> list[RowSlice]:
        """Lengthen the slices of rows by tokens that may come; may move ranges.

        Args:
            slices: Of the next step.

        Returns:
            The same, with ``drafted`` tokens where there is a guess and room for it.
        """
        if not self._max_tokens or len(slices) > self._max_rows:
            return slices
        # A row that needs a step less spares its part of it, which is less beside other rows.
        cost = _TOKEN_COST * len(slices)
        return [self._with_draft(each, min_chance=cost / (1 + cost)) for each in slices]

    def _with_draft(self, each: RowSlice, *, min_chance: float) -> RowSlice:
        row = each.row
        is_decoding = each.count == 1 and each.reaches_end and not row.reports_prompt
        if not is_decoding or row.is_encoded or row.is_beam or row.sequence.is_scored:
            return each
        num_left = row.largest_size - row.num_positions
        seen = _seen_by(row)
        drafted = tuple(
            seen.continuation(min(self._max_tokens, num_left - 1), min_chance=min_chance)
        )
        if not drafted or not self._memory.grow(row, row.num_positions + len(drafted)):
            return each
        return dataclasses.replace(each, count=1 + len(drafted), drafted=drafted)


def _seen_by(row: BatchRow) -> SeenNgrams:
    prompt_ids = row.sequence.prompt.token_ids
    if row.seen is None:
        row.seen = SeenNgrams(prompt_ids)
    row.seen.extend(row.sequence.token_ids[len(row.seen) - len(prompt_ids) :])
    return row.seen
