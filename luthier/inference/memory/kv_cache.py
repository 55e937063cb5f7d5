"""Keys and values of all running rows in one tensor, each row in a range of its own.

```
    arena, [2·L, K, N, Dh]:  layer 0 keys | layer 0 values | layer 1 keys | ...

    N tokens:  | row A . . . . | row B . . . . . . . . | free      | row C . .  | free ...
               ^ start         ^ start                             ^ start
```

A range is contiguous, so attention reads it in place and nothing is gathered. Scattered blocks
would be gathered by every layer at every step, because the CPU's attention takes one tensor: with
SmolLM2-135M's shapes, one core and 32 rows that costs 1.3 times as much at 200 tokens of context
and 3.6 times at 1000. What ranges cost instead is a copy now and then, when a row outgrows its
place or gaps are put together: 6 microseconds for a token of that model, which takes milliseconds
to compute. On a CPU the arena is address space only until it is written to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK_TOKENS = 16
_MOVE_TOKENS = 1024  # copied at a time where source and target overlap


@dataclass
class KvRange:
    """Tokens [start, start + capacity) of the arena. Only the allocator changes these.

    Args:
        start: The first.
        capacity: How many.
        offset: Position in its row of the first; those before it are held no more.
    """

    start: int
    capacity: int
    offset: int = 0

    @property
    def origin(self) -> int:
        """Where position 0 would be: a row's position p is at ``origin + p``."""
        return self.start - self.offset


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
        needed = whole_blocks(num_tokens)
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
        needed = whole_blocks(num_tokens)
        if held.start + needed > limit:
            return False
        held.capacity = max(held.capacity, needed)
        return True

    def trim(self, held: KvRange, num_tokens: int) -> None:
        """Give the first whole blocks of a range back.

        Args:
            held: It keeps at least one block.
            num_tokens: As many of its first tokens, at most.
        """
        count = num_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        count = max(0, min(count, held.capacity - BLOCK_TOKENS))
        held.start += count
        held.offset += count
        held.capacity -= count

    def close_gaps(self) -> list[tuple[int, int, int]]:
        """Move all ranges together, so that everything free is one gap.

        Returns:
            What must be copied, in this order: (source, target, count), each target below its
            source and possibly overlapping it.
        """
        moves = []
        stop = 0
        for held in self._taken:
            if held.start > stop:
                moves.append((held.start, stop, held.capacity))
                held.start = stop
            stop += held.capacity
        return moves

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


def whole_blocks(num_tokens: int) -> int:
    """Tokens that a range for ``num_tokens`` takes."""
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
        size = (2 * shape.num_layers, shape.num_kv_heads, num_tokens, shape.head_dim)
        with torch.inference_mode(False):  # so that it may be written to in any mode
            self._data = torch.empty(size, dtype=dtype, device=device)
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
        """Copy ``count`` tokens; a target that overlaps its source must be below it."""
        overlap = abs(source - target) < count
        step = _MOVE_TOKENS if overlap else max(1, count)
        for first in range(0, count, step):
            stop = min(first + step, count)
            tokens = self._data[:, :, source + first : source + stop]
            self._data[:, :, target + first : target + stop] = tokens.clone() if overlap else tokens
