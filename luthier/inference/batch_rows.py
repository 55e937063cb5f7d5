"""A row of the batched engine: its sequence, where its keys and values lie, how far it got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from luthier.inference.channels import Channel
from luthier.inference.memory.kv_cache import KvRange
from luthier.inference.memory.prefix_cache import (
    PREFIX_BLOCK_TOKENS,
    PrefixBlock,
    chained_key,
    tenants_key,
)
from luthier.inference.sampling.seen_ngrams import SeenNgrams
from luthier.inference.sequences import RowSequence


@dataclass
class EncoderRange:
    """What an encoder read for a row, or for several that share it.

    Args:
        kv: Where; None while the row is not running.
        is_read: Whether an encoder has filled that.
    """

    kv: KvRange | None = None
    is_read: bool = False


class BatchRow:
    """One request in the batched engine, or one of its beams (``beam_rows``).

    Its positions are virtual tokens, prompt tokens, then generated tokens; the first
    ``num_computed`` of them have keys and values. For a seq2seq model they are the decoder's: its
    start stands in for the prompt, which the encoder reads once, into a range of its own.

    Args:
        sequence: What it answers.
        adapter_key: The adapter's content hash, "" for the bare base.
        decoder_start_ids: What a seq2seq decoder starts from; None if the prompt itself is decoded.
    """

    def __init__(
        self,
        sequence: RowSequence,
        *,
        adapter_key: str,
        decoder_start_ids: Sequence[int] | None = None,
    ) -> None:
        self.sequence = sequence
        self.adapter_key = adapter_key
        self.is_encoded = decoder_start_ids is not None
        self._first_ids = (
            sequence.prompt.token_ids if decoder_start_ids is None else decoder_start_ids
        )
        self.channel = Channel()  # every step looks at who was cancelled
        self.kv: KvRange | None = None
        self.encoded = EncoderRange()
        self.num_computed = 0
        self.turn_start = 0  # tokens it had generated when it was admitted last
        self.arrival = 0  # its number among all that came
        self.arrival_step = 0
        self.seen: SeenNgrams | None = None  # of prompt and answer, where tokens are guessed
        self.leader: BatchRow | None = None  # computed what this row was to start from
        self._prefix_blocks: list[PrefixBlock] = []

    @property
    def members(self) -> tuple[BatchRow, ...]:
        """The rows that come and go together; the first of them waits for all."""
        return (self,)

    @property
    def head(self) -> BatchRow:
        """The first of its members."""
        return self.members[0]

    @property
    def width(self) -> int:
        """Places that it takes, with its members."""
        return len(self.members)

    @property
    def is_beam(self) -> bool:
        """True for a row of a beam search."""
        return False

    @property
    def waits_for_head(self) -> bool:
        """True while it goes on from what the first of its members has not computed yet."""
        return False

    @property
    def generated_ids(self) -> Sequence[int]:
        """What comes after its first tokens so far."""
        return self.sequence.token_ids

    @property
    def tenant(self) -> str:
        """On whose behalf it runs."""
        return self.sequence.request.tenant

    @property
    def priority(self) -> int:
        """Among the rows of its tenant; more is sooner."""
        return self.sequence.request.priority

    @property
    def turn_key(self) -> str:
        """Which of its tenant's turns it shares: those of its adapter."""
        return self.adapter_key

    @property
    def flow(self) -> tuple[str, str]:
        """Whom it shares its turns with: rows of the same adapter and tenant."""
        return self.tenant, self.turn_key

    @property
    def num_virtual(self) -> int:
        """P."""
        return self.sequence.prompt.num_decoder_virtual_tokens

    @property
    def num_encoder(self) -> int:
        """Tokens that the encoder reads, virtual ones included; 0 without an encoder."""
        prompt = self.sequence.prompt
        return self.is_encoded * (prompt.num_encoder_virtual_tokens + len(prompt.token_ids))

    def prefix_blocks(self) -> Sequence[PrefixBlock]:
        """The whole blocks of its positions so far, by name; the virtual tokens are the first.

        Text is shared within a tenant only: how soon an answer comes must not tell one tenant what
        another has asked. The virtual tokens of an adapter are everybody's.

        Behind an encoder there is at most a prefix that the adapter brings: what a decoder makes of
        tokens depends on what was read.
        """
        blocks = self._prefix_blocks
        is_known = self.sequence.prompt.key_values is not None or not self.is_encoded
        if self.num_virtual and is_known and not blocks:
            blocks.append(PrefixBlock(self.adapter_key, 0, self.num_virtual))
        while not self.is_encoded:
            start = blocks[-1].stop if blocks else 0
            stop = start + PREFIX_BLOCK_TOKENS
            if stop > self.num_nameable:
                break
            parent = blocks[-1].key if blocks else self.adapter_key
            if start == self.num_virtual:
                parent = tenants_key(parent, self.sequence.request.tenant)
            key = chained_key(parent, self.token_ids(start, stop))
            blocks.append(PrefixBlock(key, start, stop))
        return blocks

    @property
    def num_first(self) -> int:
        """Positions before the first generated token."""
        return self.num_virtual + len(self._first_ids)

    @property
    def num_nameable(self) -> int:
        """Positions whose tokens stay what they are, so that others may start from them."""
        return self.num_positions

    @property
    def num_positions(self) -> int:
        """All there are so far."""
        return self.num_first + len(self.generated_ids)

    @property
    def num_pending(self) -> int:
        """Positions without keys and values; 1 for a row that is decoding."""
        return self.num_positions - self.num_computed

    @property
    def largest_size(self) -> int:
        """Positions if every token that it may generate is generated."""
        return self.num_virtual + len(self._first_ids) + self.sequence.max_new_tokens

    @property
    def reports_prompt(self) -> bool:
        """True while log-probabilities of prompt tokens are asked for; an encoder gives none."""
        return not self.is_encoded and self.sequence.num_unreported_prompt > 0

    def token_ids(self, start: int, stop: int) -> Iterator[int]:
        """Ids at positions [start, stop); 0 stands for a virtual token."""
        first_ids = self._first_ids
        generated_ids, num_before = self.generated_ids, self.num_first
        for position in range(start, stop):
            if position < self.num_virtual:
                yield 0
            elif position < num_before:
                yield first_ids[position - self.num_virtual]
            else:
                yield generated_ids[position - num_before]


@dataclass(frozen=True)
class RowSlice:
    """What a step computes of a row: positions [start, start + count).

    Args:
        row: Which.
        start: First position.
        count: Positions, guessed ones included.
        drafted: Guesses of tokens that come after the row's own; checked by the step's logits.
    """

    row: BatchRow
    start: int
    count: int
    drafted: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + self.count

    @property
    def reaches_end(self) -> bool:
        """True if the step's logits predict the row's next token."""
        return self.stop - len(self.drafted) == self.row.num_positions

    def token_ids(self) -> Iterator[int]:
        """Ids at its positions; 0 stands for a virtual token."""
        yield from self.row.token_ids(self.start, self.stop - len(self.drafted))
        yield from self.drafted

    @property
    def num_logits(self) -> int:
        """Rows of logits that are needed: all of a measured prompt's, else the last or none; one
        more for each guess."""
        if self.row.reports_prompt:
            return self.count
        if self.row.sequence.is_scored:
            return 0
        return 1 + len(self.drafted) if self.reaches_end else 0

    @property
    def wants_hidden(self) -> bool:
        """True if the last position's hidden state is needed: its row is scored then."""
        return self.row.sequence.is_scored and self.reaches_end


@dataclass(frozen=True)
class RowInput:
    """What an encoder reads of a row: all of its prompt."""

    row: BatchRow

    @property
    def count(self) -> int:
        """Tokens, virtual ones included."""
        return self.row.num_encoder


@dataclass(frozen=True)
class SliceLogits:
    """What the model says after a slice.

    Args:
        slice: Which.
        logits: [``slice.num_logits``, V].
        hidden: What the output layer would read at the slice's last position, [D], if the slice
            ``wants_hidden``.
    """

    slice: RowSlice
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
