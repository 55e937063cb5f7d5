"""Keys and values of all running rows in one tensor, each row in a range of its own.

```
    arena, [2·L, K, N, Dh]:  layer 0 keys | layer 0 values | layer 1 keys | ...

    N tokens:  | row A . . . . | row B . . . . . . . . | free      | row C . .  | free ...
               ^ start         ^ start                             ^ start
```

A range is contiguous, so attention reads it in place and nothing is gathered. On a CPU the arena
is address space only until it is written to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch

BLOCK_TOKENS = 16


@dataclass
class KvRange:
    """Tokens [start, start + capacity) of the arena. Only the allocator changes it."""

    start: int
    capacity: int


class RangeAllocator:
    """Hands out ranges of whole blocks, lowest first. Each range must be freed exactly once.

    Args:
        num_tokens: N, size of the arena.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens - num_tokens % BLOCK_TOKENS
        self._taken: list[KvRange] = []  # by start

    @property
    def num_free(self) -> int:
        """Tokens in no range."""
        return self.num_tokens - sum(each.capacity for each in self._taken)

    def take(self, num_tokens: int) -> KvRange | None:
        """The lowest range of at least ``num_tokens``, or None if there is no such gap."""
        needed = _whole_blocks(num_tokens)
        start = 0
        for index, taken in enumerate(self._taken):
            if taken.start - start >= needed:
                return self._insert(index, KvRange(start, needed))
            start = taken.start + taken.capacity
        if self.num_tokens - start >= needed:
            return self._insert(len(self._taken), KvRange(start, needed))
        return None

    def extend(self, held: KvRange, num_tokens: int) -> bool:
        """Grow a range in place to at least ``num_tokens``; False if there is no room."""
        index = self._index(held)
        is_last = index + 1 == len(self._taken)
        limit = self.num_tokens if is_last else self._taken[index + 1].start
        needed = _whole_blocks(num_tokens)
        if held.start + needed > limit:
            return False
        held.capacity = max(held.capacity, needed)
        return True

    def free(self, held: KvRange) -> None:
        """Give a range back."""
        del self._taken[self._index(held)]

    def _insert(self, index: int, new: KvRange) -> KvRange:
        self._taken.insert(index, new)
        return new

    def _index(self, held: KvRange) -> int:
        for index, taken in enumerate(self._taken):
            if taken is held:
                return index
        raise AssertionError(f"{held} is not taken: freed twice?")


def _whole_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS


@dataclass(frozen=True)
class KvShape:
    """What one token of one sequence takes.

    Args:
        num_layers: L.
        num_kv_heads: K.
        head_dim: Dh, of keys and of values alike.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


class KvArena:
    """The tensor behind the ranges.

    Args:
        shape: Per token.
        num_tokens: N.
        dtype: Of the model.
        device: Of the model.
    """

    def __init__(
        self, shape: KvShape, num_tokens: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self._data = torch.empty(
            (2 * shape.num_layers, shape.num_kv_heads, num_tokens, shape.head_dim),
            dtype=dtype,
            device=device,
        )
        self._layers = tuple(self._data.unbind(0))

    def write(
        self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what one layer made for the tokens of a step.

        Args:
            layer: Its index.
            slots: Where in the arena, [T].
            keys: [K, T, Dh].
            values: [K, T, Dh].

        Returns:
            The layer's keys and values of the whole arena, [K, N, Dh] each, not copied.
        """
        all_keys, all_values = self.read(layer)
        all_keys.index_copy_(1, slots, keys)
        all_values.index_copy_(1, slots, values)
        return all_keys, all_values

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values of the whole arena, [K, N, Dh] each, not copied."""
        return self._layers[2 * layer], self._layers[2 * layer + 1]

    def copy_out(self, start: int, count: int) -> torch.Tensor:
        """A copy of ``count`` tokens, [2·L, K, count, Dh]."""
        return self._data[:, :, start : start + count].clone()

    def copy_in(self, start: int, tokens: torch.Tensor) -> None:
        """Put back what ``copy_out`` gave, here or elsewhere."""
        self._data[:, :, start : start + tokens.shape[2]] = tokens

    def move(self, source: int, target: int, count: int) -> None:
        """Copy ``count`` tokens between two ranges that do not overlap."""
        self._data[:, :, target : target + count] = self._data[:, :, source : source + count]


class SoftPromptKv:
    """Keys and values of soft prompts, computed once per content and shared by all their rows.

    Keyed by the adapter's content hash, so an adapter that was tuned again is another entry. The
    least recently used are dropped first.

    Args:
        max_bytes: Of all entries together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, content_hash: str) -> torch.Tensor | None:
        """[2·L, K, P, Dh], or None."""
        entry = self._entries.get(content_hash)
        if entry is not None:
            self._entries.move_to_end(content_hash)
        return entry

    def put(self, content_hash: str, tokens: torch.Tensor) -> None:
        """Keep an entry, dropping others until it fits; one that never fits is not kept."""
        if tokens.nbytes > self._max_bytes:
            return
        self._entries[content_hash] = tokens
        while sum(entry.nbytes for entry in self._entries.values()) > self._max_bytes:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
