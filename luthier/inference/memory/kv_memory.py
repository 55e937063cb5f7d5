"""What rows do with keys and values: take a range, grow it, start from a known prefix, leave one.

```
    arena:    | row A . . | row B . . . . |  free  | row C . . |     max_kv_bytes
                  ▲ restore       │ keep
    prefixes: [blk][blk][blk] ◄───┘   copies, by name                max_prefix_bytes
```

A row that is preempted leaves its blocks among the prefixes. When it comes back it finds those that
nobody has pushed out, and computes the rest again: what is swapped and what is recomputed follows
from how much memory there is.
"""

from __future__ import annotations

import torch

from luthier.inference.batch_rows import BatchRow
from luthier.inference.memory.kv_cache import (
    KvArena,
    KvRange,
    KvShape,
    RangeAllocator,
    whole_blocks,
)
from luthier.inference.memory.prefix_cache import PrefixBlock, PrefixCache

_HEADROOM = 64  # tokens a range gets beyond what its row needs now


class KvMemory:
    """The arena of an engine, its allocator and its prefixes. Not thread-safe.

    Args:
        shape: What a token takes.
        num_tokens: N, size of the arena; rounded down to whole blocks.
        max_prefix_bytes: Of all known prefixes together.
        dtype: Of the model.
        device: Of the model.
    """

    def __init__(
        self,
        shape: KvShape,
        *,
        num_tokens: int,
        max_prefix_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.allocator = RangeAllocator(num_tokens)
        self.arena = KvArena(shape, num_tokens, dtype=dtype, device=device)
        self.prefixes = PrefixCache(max_prefix_bytes)
        self._bytes_per_token = shape.bytes_per_token(dtype)

    def num_needed(self, row: BatchRow) -> int:
        """Tokens of the arena that a row takes when it is admitted, at least."""
        return whole_blocks(row.num_positions) + whole_blocks(row.num_encoder)

    def admit(self, row: BatchRow) -> bool:
        """Give a row its ranges and the longest known prefix.

        Args:
            row: One that holds nothing; its ``num_computed`` is set.

        Returns:
            Whether there was room; if not, it holds nothing still.
        """
        if row.num_encoder:
            row.encoder_kv = self._take(row.num_encoder)
        if row.encoder_kv is not None or not row.num_encoder:
            wanted = _with_headroom(row, row.num_positions)
            row.kv = self.allocator.take(wanted) or self._take(row.num_positions)
        if row.kv is None:
            self.drop(row)
            return False
        row.num_computed = self._restore(row, row.kv)
        return True

    def grow(self, row: BatchRow, num_tokens: int) -> bool:
        """Make a row's range hold ``num_tokens``, moving it or others if need be.

        Args:
            row: One that was admitted.
            num_tokens: Positions, from the row's first on.

        Returns:
            Whether there was room.
        """
        held = row.kv
        assert held is not None
        if num_tokens <= held.capacity:
            return True
        sizes = (_with_headroom(row, num_tokens), num_tokens)
        if any(self.allocator.extend(held, size) for size in sizes):
            return True
        larger = self.allocator.take(sizes[0]) or self.allocator.take(sizes[1])
        if larger is not None:
            self.arena.move(held.start, larger.start, row.num_computed)
            self.allocator.free(held)
            row.kv = larger
            return True
        if whole_blocks(num_tokens) > self.allocator.num_free + held.capacity:
            return False
        tokens = self.arena.copy_out(held.start, row.num_computed)
        self.allocator.free(held)
        row.kv = self._take(num_tokens)
        assert row.kv is not None
        self.arena.copy_in(row.kv.start, tokens)
        return True

    def release(self, row: BatchRow) -> None:
        """Take a row's ranges back, keeping what others, or the row itself, may start from."""
        if row.kv is not None:
            self.keep(row)
        self.drop(row)

    def drop(self, row: BatchRow) -> None:
        """Take a row's ranges back and look at nothing in them."""
        for held in (row.kv, row.encoder_kv):
            if held is not None:
                self.allocator.free(held)
        row.kv = row.encoder_kv = None
        row.is_read = False
        row.num_computed = 0

    def keep(self, row: BatchRow) -> None:
        """Let others start from what a row has computed so far."""
        assert row.kv is not None
        done = [block for block in self._keepable(row) if block.stop <= row.num_computed]
        for block in done:
            if block.key not in self.prefixes and not _brings(row, block):
                start = row.kv.start + block.start
                self.prefixes.put(block.key, self.arena.copy_out(start, block.stop - block.start))
        self.prefixes.touch([block.key for block in done])

    def next_block(self, row: BatchRow) -> PrefixBlock | None:
        """The block after the longest known prefix, if the row could start behind it."""
        limit = _restorable(row)
        for block in self._keepable(row):
            if block.start >= limit:
                return None
            if block.key not in self.prefixes and not _brings(row, block):
                return block
        return None

    def missing_blocks(self, row: BatchRow) -> list[PrefixBlock]:
        """The blocks that a row will have computed when its prompt is."""
        return [
            block
            for block in self._keepable(row)
            if row.num_computed < block.stop <= row.num_positions
        ]

    def _restore(self, row: BatchRow, held: KvRange) -> int:
        limit = _restorable(row)
        found: list[str] = []
        num_restored = 0
        for block in row.prefix_blocks():
            tokens = self._known(row, block)
            if tokens is None or block.start >= limit:
                break
            count = min(block.stop, limit) - block.start
            self.arena.copy_in(held.start + block.start, tokens[:, :, :count])
            num_restored = block.start + count
            found.append(block.key)
        self.prefixes.touch(found)
        return num_restored

    def _known(self, row: BatchRow, block: PrefixBlock) -> torch.Tensor | None:
        if _brings(row, block):
            return row.sequence.prompt.key_values
        return self.prefixes.get(block.key)

    def _keepable(self, row: BatchRow) -> list[PrefixBlock]:
        """A row's blocks as far as the cache could hold them all; more would push out the first."""
        most = self.prefixes.max_bytes // self._bytes_per_token
        return [block for block in row.prefix_blocks() if block.stop <= most]

    def _take(self, num_tokens: int) -> KvRange | None:
        taken = self.allocator.take(num_tokens)
        if taken is None and whole_blocks(num_tokens) <= self.allocator.num_free:
            for source, target, count in self.allocator.close_gaps():
                self.arena.move(source, target, count)
            taken = self.allocator.take(num_tokens)
        return taken


def _brings(row: BatchRow, block: PrefixBlock) -> bool:
    """True if the adapter itself says what a block's keys and values are."""
    return block.start == 0 < row.num_virtual and row.sequence.prompt.key_values is not None


def _restorable(row: BatchRow) -> int:
    """Positions a row need not compute: not the last, nor prompt tokens that are to be measured."""
    return min(row.num_virtual if row.reports_prompt else row.num_positions, row.num_positions - 1)


def _with_headroom(row: BatchRow, num_tokens: int) -> int:
    return max(num_tokens, min(row.largest_size, num_tokens + max(_HEADROOM, num_tokens // 2)))
