"""Attention of an encoder and a decoder for rows laid end to end.

```
    reading, once a row:   encoder over | A's input | B's input | ...   each sees itself only
                           -> every decoder layer's keys and values of it, kept in the arena
    a step:                decoder over | A: one new token | B: one | ...
                             self-attention:  A -> A's own past            B -> ...
                             cross-attention: A -> what was read for A     B -> ...
```

transformers gives a decoder layer the keys and values of the encoder's output from a cache
(``EncoderDecoderCache``). Ours takes them in while reading; in a step it hands out an empty token
instead, and attention that is given this token knows that it looks at the encoder.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from luthier.errors import NotSupportedError
from luthier.inference.memory.kv_cache import KvArena
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedRow, refuse_unknown, row_table
from luthier.inference.runners.row_attention import attend_rows, has_row_attention
from luthier.inference.runners.score_attention import ScoreOptions
from luthier.inference.runners.seq2seq.relative_positions import RelativePositions

NAME = "luthier_encoder_decoder"


class AttentionStep(ABC):
    """Who sees whom in one forward pass."""

    biases: RelativePositions

    @abstractmethod
    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Attend row by row.

        Args:
            layer: Its index.
            query: [1, H, N, Dh].
            key: [1, H, N, Dh], or what the cache gave.
            value: As ``key``.
            scaling: Of the scores.

        Returns:
            [1, N, H, Dh].
        """


def encoder_decoder_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    Args:
        module: The attention layer; its ``layer_idx`` says which, its network's ``CurrentStep``
            who sees whom.
        query: [1, H, N, Dh].
        key: [1, H, N, Dh], or what the cache gave.
        value: As ``key``.
        attention_mask: Not used: the step says who sees what.
        scaling: Of the scores.
        position_bias: Not used, since it counts packed tokens: the step has its own.
        **others: Further features of the model; refused if they would matter.

    Returns:
        [1, N, H, Dh] and no weights.

    Raises:
        NotSupportedError: If the model asks for what this attention does not do.
    """
    refuse_unknown(module, others)
    step: AttentionStep = CurrentStep.of(module)
    if getattr(module, "has_relative_attention_bias", False) and not step.biases:
        raise NotSupportedError(f"{type(module).__name__} adds biases that packed rows lack")
    return step.attend(module.layer_idx, query, key, value, scaling), None


@dataclass(frozen=True)
class EncoderStep(AttentionStep):
    """Rows of encoder input; every token sees its whole row.

    Args:
        spans: (first token, count) of each row, in order.
        biases: The encoder's.
    """

    spans: tuple[tuple[int, int], ...]
    biases: RelativePositions

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Attend within each row; see ``AttentionStep``."""
        outputs = []
        for first, count in self.spans:
            span = slice(first, first + count)
            bias = self.biases.square(layer, count) if self.biases else None
            own = scaled_dot_product_attention(
                query[:, :, span], key[:, :, span], value[:, :, span], attn_mask=bias, scale=scaling
            )
            outputs.append(own)
        return torch.cat(outputs, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class ReadingStep(AttentionStep):
    """A decoder's pass whose only purpose is what its cross-attention makes of an encoder's output.

    Args:
        biases: The decoder's.
    """

    biases: RelativePositions

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Anything will do; see ``AttentionStep``."""
        return query.transpose(1, 2)


@dataclass(frozen=True)
class DecoderStep(AttentionStep):
    """Slices of rows of a decoder.

    Args:
        arena: Keys and values, of the decoder's own tokens and of what the encoder read.
        slots: Where the step's tokens go in it, [N].
        rows: In the order of their tokens.
        encoder_spans: Where each row's encoder range starts and ends.
        biases: The decoder's.
        stand_in: The key that the cache hands to cross-attention.
    """

    arena: KvArena
    slots: torch.Tensor
    rows: tuple[PackedRow, ...]
    encoder_spans: tuple[tuple[int, int], ...]
    biases: RelativePositions
    stand_in: torch.Tensor

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Attend to the row's past, or to what the encoder read; see ``AttentionStep``."""
        if key is self.stand_in:
            return self._look_at_encoder(layer, query, scaling)
        if has_row_attention(query, key, value):
            return self._attend_by_kernel(layer, query, (key[0], value[0]), scaling)
        keys, values = self.arena.write(layer, self.slots, key[0], value[0])
        outputs = []
        for row in self.rows:
            part = query[:, :, row.first : row.first + row.count]
            span = slice(row.kv_start, row.kv_end)
            mask = self._mask(layer, row)
            outputs.append(
                scaled_dot_product_attention(
                    part, keys[None, :, span], values[None, :, span], attn_mask=mask, scale=scaling
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _look_at_encoder(
        self, layer: int, query: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        keys, values = self.arena.read(layer)
        if has_row_attention(query, keys):
            options = ScoreOptions(scaling=scaling)
            table = self._encoder_table
            return attend_rows(query[0], None, (keys, values), table, options=options)[None]
        outputs = []
        for row, (start, end) in zip(self.rows, self.encoder_spans, strict=True):
            part = query[:, :, row.first : row.first + row.count]
            outputs.append(
                scaled_dot_product_attention(
                    part, keys[None, :, start:end], values[None, :, start:end], scale=scaling
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _attend_by_kernel(
        self,
        layer: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        scaling: float | None,
    ) -> torch.Tensor:
        bias = None
        if self.biases:
            longest = max(row.kv_end - row.kv_start for row in self.rows)
            bias = self.biases.next_token(layer, longest)[0, :, 0]
        options, stored = ScoreOptions(scaling=scaling), self.arena.read(layer)
        return attend_rows(query[0], new, stored, self._table, options=options, bias=bias)[None]

    @functools.cached_property
    def _table(self) -> torch.Tensor:
        return row_table(self.rows)

    @functools.cached_property
    def _encoder_table(self) -> torch.Tensor:
        pairs = zip(self.rows, self.encoder_spans, strict=True)
        numbers = [(row.first, row.count, start, end) for row, (start, end) in pairs]
        return torch.tensor(numbers, dtype=torch.long)

    def _mask(self, layer: int, row: PackedRow) -> torch.Tensor | None:
        num_seen = row.start + row.count
        if not self.biases:
            return row.mask
        if row.count == 1:
            return self.biases.next_token(layer, num_seen)
        bias = self.biases.square(layer, num_seen)[:, :, row.start :]
        return bias if row.mask is None else bias.masked_fill(~row.mask, float("-inf"))


class _PassingCache(Cache):  # type: ignore[misc]
    """Keeps nothing: attention has its own place for keys and values."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _ReadingCache(_PassingCache):
    """Puts what a layer makes of an encoder's output into the arena."""

    def __init__(self, arena: KvArena, slots: torch.Tensor) -> None:
        super().__init__()
        self._arena = arena
        self._slots = slots

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._arena.write(layer_idx, self._slots, key_states[0], value_states[0])
        return key_states, value_states


class _StandInCache(_PassingCache):
    """Says that all has been read, and hands out one token in its place."""

    def __init__(self, stand_in: torch.Tensor, num_layers: int) -> None:
        super().__init__()
        for _ in range(num_layers):
            layer = DynamicLayer()
            layer.keys = layer.values = stand_in
            self.layers.append(layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1


def reading_cache(arena: KvArena, slots: torch.Tensor) -> EncoderDecoderCache:
    """A cache that stores the keys and values of an encoder's output.

    Args:
        arena: Where to.
        slots: Where in it each token goes, [N].

    Returns:
        What a decoder takes as ``past_key_values``, once.
    """
    return EncoderDecoderCache(_PassingCache(), _ReadingCache(arena, slots))


def stand_in_cache(stand_in: torch.Tensor, num_layers: int) -> EncoderDecoderCache:
    """A cache for steps in which everything about the encoder's output is in the arena.

    Args:
        stand_in: The key and value of the empty token, [1, H, 1, Dh].
        num_layers: L.

    Returns:
        What a decoder takes as ``past_key_values``, any number of times.
    """
    return EncoderDecoderCache(_PassingCache(), _StandInCache(stand_in, num_layers))
