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

from collections.abc import Callable, Sequence

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
        window: Tokens that every layer looks back at, the looking one included; what is farther
            back is given free. None if any layer sees all.
    """

    def __init__(
        self,
        shape: KvShape,
        *,
        num_tokens: int,
        max_prefix_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ) -> None:
        self._window = window
        self.allocator = RangeAllocator(num_tokens)
        self.arena = KvArena(shape, num_tokens, dtype=dtype, device=device)
        self.prefixes = PrefixCache(max_prefix_bytes)
        self._bytes_per_token = shape.bytes_per_token(dtype)

    def num_needed(self, row: BatchRow) -> int:
        """Tokens of the arena that a row, with its members, takes when it is admitted, at least."""
        return whole_blocks(row.num_encoder) + sum(
            whole_blocks(member.num_positions) for member in row.members
        )

    def admit(self, row: BatchRow) -> bool:
        """Give a row and its members their ranges, and the first of them the longest known prefix.

        Args:
            row: One that holds nothing; its ``num_computed`` is set.

        Returns:
            Whether there was room; if not, it holds nothing still.
        """
        head = row.head
        if head.num_encoder:
            head.encoded.kv = self._take(head.num_encoder)
        is_read = head.encoded.kv is not None or not head.num_encoder
        if not (is_read and (self._take_all(row, roomy=True) or self._take_all(row, roomy=False))):
            self.drop(row)
            return False
        assert head.kv is not None
        head.num_computed = self._restore(head, head.kv)
        return True

    def share(self, row: BatchRow) -> None:
        """Give a row what the first of its members computed before the first generated token.

        Args:
            row: One that was admitted and has computed nothing.
        """
        assert row.kv is not None
        assert row.head.kv is not None
        first = row.head.kv.offset
        source, target = row.head.kv.origin + first, row.kv.origin + first
        self.arena.move(source, target, row.num_first - first)
        row.num_computed = row.num_first

    def reorder(
        self, rows: Sequence[BatchRow], sources: Sequence[int], num_alike: Callable[[int, int], int]
    ) -> None:
        """Make each row hold what another held.

        A range goes on to the first row that wants it; for the others what differs is copied into
        ranges that nobody wants.

        Args:
            rows: Members, all of which have computed the same number of positions.
            sources: Which row each goes on from.
            num_alike: Of two rows, the first positions that hold the same.
        """
        ranges = [row.kv for row in rows]
        unwanted = [place for place in range(len(rows)) if place not in sources]
        passed_on: set[int] = set()
        for row, source in zip(rows, sources, strict=True):
            row.kv = held = ranges[source]
            if source not in passed_on:
                passed_on.add(source)
                continue
            place = unwanted.pop()
            row.kv = target = ranges[place]
            assert held is not None
            assert target is not None
            first = max(num_alike(source, place), held.offset)
            self.arena.move(held.origin + first, target.origin + first, row.num_computed - first)

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
        self._trim(row, held)
        offset = held.offset
        needed = num_tokens - offset
        if needed <= held.capacity:
            return True
        sizes = (_with_headroom(row, num_tokens, offset), needed)
        if any(self.allocator.extend(held, size) for size in sizes):
            return True
        num_kept = row.num_computed - offset
        larger = self.allocator.take(sizes[0]) or self.allocator.take(sizes[1])
        if larger is not None:
            self.arena.move(held.start, larger.start, num_kept)
            self.allocator.free(held)
            larger.offset = offset
            row.kv = larger
            return True
        if whole_blocks(needed) > self.allocator.num_free + held.capacity:
            return False
        tokens = self.arena.copy_out(held.start, num_kept)
        self.allocator.free(held)
        row.kv = self._take(needed)
        assert row.kv is not None
        row.kv.offset = offset
        self.arena.copy_in(row.kv.start, tokens)
        return True

    def release(self, row: BatchRow) -> None:
        """Take the ranges of a row and its members back, keeping what others, or the row itself,
        may start from."""
        for member in row.members:
            if member.kv is not None:
                self.keep(member)
        self.drop(row)

    def drop(self, row: BatchRow) -> None:
        """Take the ranges of a row and its members back and look at nothing in them."""
        encoded = row.head.encoded
        held = [member.kv for member in row.members]
        for each in (*held, encoded.kv):
            if each is not None:
                self.allocator.free(each)
        encoded.kv, encoded.is_read = None, False
        for member in row.members:
            member.kv = None
            member.num_computed = 0

    def keep(self, row: BatchRow) -> None:
        """Let others start from what a row has computed so far and still holds."""
        held = row.kv
        assert held is not None
        done = [block for block in self._keepable(row) if block.stop <= row.num_computed]
        for block in done:
            is_held = block.start >= held.offset
            if is_held and block.key not in self.prefixes and not _brings(row, block):
                start = held.origin + block.start
                self.prefixes.put(block.key, self.arena.copy_out(start, block.stop - block.start))
        self.prefixes.touch([block.key for block in done])
        self._trim(row, held)

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

    def _trim(self, row: BatchRow, held: KvRange) -> None:
        """Give back what no later token of a row looks at."""
        if self._window is not None:
            num_unseen = row.num_computed - self._window + 1  # by the next token, and all after it
            self.allocator.trim(held, num_unseen - held.offset)

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

    def _take_all(self, row: BatchRow, *, roomy: bool) -> bool:
        """Give all members their ranges, with room to grow or without; or none of them."""
        for member in row.members:
            if roomy:
                member.kv = self.allocator.take(_with_headroom(member, member.num_positions))
            else:
                member.kv = self._take(member.num_positions)
            if member.kv is None:
                break
        else:
            return True
        for member in row.members:
            if member.kv is not None:
                self.allocator.free(member.kv)
                member.kv = None
        return False

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


def _with_headroom(row: BatchRow, num_tokens: int, offset: int = 0) -> int:
    """Tokens of a range for positions up to ``num_tokens`` that begins at ``offset``."""
    needed = num_tokens - offset
    return max(needed, min(row.largest_size - offset, needed + max(_HEADROOM, needed // 2)))
