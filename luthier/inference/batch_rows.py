"""A row of the batched engine: its sequence, where its keys and values lie, how far it got."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luthier.inference.channels import Channel
from luthier.inference.kv_cache import KvRange
from luthier.inference.sequences import GeneratedSequence


class BatchRow:
    """One request in the batched engine.

    Its positions are virtual tokens, prompt tokens, then generated tokens; the first
    ``num_computed`` of them have keys and values.

    Args:
        sequence: What it generates.
        adapter_key: The adapter's content hash, "" for the bare base.
    """

    def __init__(self, sequence: GeneratedSequence, *, adapter_key: str) -> None:
        self.sequence = sequence
        self.adapter_key = adapter_key
        self.channel = Channel()  # every step looks at who was cancelled
        self.kv: KvRange | None = None
        self.num_computed = 0

    @property
    def num_virtual(self) -> int:
        """P."""
        return self.sequence.prompt.num_decoder_virtual_tokens

    @property
    def num_positions(self) -> int:
        """All there are so far."""
        sequence = self.sequence
        return self.num_virtual + len(sequence.prompt.token_ids) + len(sequence.token_ids)

    @property
    def num_pending(self) -> int:
        """Positions without keys and values; 1 for a row that is decoding."""
        return self.num_positions - self.num_computed

    @property
    def largest_size(self) -> int:
        """Positions if every token that it may generate is generated."""
        sequence = self.sequence
        num_new = sequence.request.sampling.max_new_tokens
        if sequence.prompt.room is not None:
            num_new = min(num_new, sequence.prompt.room)
        return self.num_virtual + len(sequence.prompt.token_ids) + num_new

    def token_ids(self, start: int, stop: int) -> Iterator[int]:
        """Ids at positions [start, stop); 0 stands for a virtual token."""
        prompt = self.sequence.prompt.token_ids
        num_before = self.num_virtual + len(prompt)
        for position in range(start, stop):
            if position < self.num_virtual:
                yield 0
            elif position < num_before:
                yield prompt[position - self.num_virtual]
            else:
                yield self.sequence.token_ids[position - num_before]


@dataclass(frozen=True)
class RowSlice:
    """What a step computes of a row: positions [start, start + count)."""

    row: BatchRow
    start: int
    count: int

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + self.count

    @property
    def reaches_end(self) -> bool:
        """True if the step's logits predict the row's next token."""
        return self.stop == self.row.num_positions

    @property
    def num_logits(self) -> int:
        """Rows of logits that are needed: all of a measured prompt's, else the last or none."""
        if self.row.sequence.wants_prompt_logits and self.row.sequence.num_unreported_prompt:
            return self.count
        return 1 if self.reaches_end else 0


@dataclass(frozen=True)
class SliceLogits:
    """What the model says after a slice.

    Args:
        slice: Which.
        logits: [``slice.num_logits``, V].
    """

    slice: RowSlice
    logits: torch.Tensor
