from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from luthier.inference.memory.kv_cache import (
    BLOCK_TOKENS,
    KvArena,
    KvRange,
    KvShape,
    RangeAllocator,
)

NUM_TOKENS = 20 * BLOCK_TOKENS


class AllocatorMachine(RuleBasedStateMachine):
    """Random takes, extensions and frees against a plain list of who owns which token."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = RangeAllocator(NUM_TOKENS)
        self.held: list[KvRange] = []

    @rule(num_tokens=st.integers(1, NUM_TOKENS + 40))
    def take(self, num_tokens: int) -> None:
        gaps = self._gaps()
        taken = self.allocator.take(num_tokens)
        if taken is None:
            assert max(gaps, default=0) < num_tokens
        else:
            assert taken.capacity >= num_tokens
            self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_tokens=st.integers(1, NUM_TOKENS))
    def extend(self, data: st.DataObject, num_tokens: int) -> None:
        held = data.draw(st.sampled_from(self.held))
        before = held.capacity
        if self.allocator.extend(held, num_tokens):
            assert held.capacity >= max(before, num_tokens)
        else:
            assert held.capacity == before < num_tokens

    @rule()
    def close_gaps(self) -> None:
        places = {t: t for t in range(NUM_TOKENS)}  # where each token's content is now
        before = {id(each): (each.start, each.capacity) for each in self.held}
        for source, target, count in self.allocator.close_gaps():
            moved = [places[source + n] for n in range(count)]
            places |= {target + n: content for n, content in enumerate(moved)}
        for each in self.held:
            start, capacity = before[id(each)]
            assert each.capacity == capacity
            assert [places[each.start + n] for n in range(capacity)] == [
                start + n for n in range(capacity)
            ]
        assert len(self._gaps()) <= 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self.held = [each for each in self.held if each is not held]
        self.allocator.free(held)

    @invariant()
    def no_token_belongs_to_two(self) -> None:
        owned = [t for each in self.held for t in range(each.start, each.start + each.capacity)]
        assert len(owned) == len(set(owned))
        assert all(0 <= token < NUM_TOKENS for token in owned)
        assert self.allocator.num_free == NUM_TOKENS - len(owned)

    def _gaps(self) -> list[int]:
        owned = {t for each in self.held for t in range(each.start, each.start + each.capacity)}
        row = "".join("x" if token in owned else " " for token in range(NUM_TOKENS))
        return [len(gap) for gap in row.split("x") if gap]


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True
)


def test_a_range_cannot_be_freed_twice() -> None:
    allocator = RangeAllocator(NUM_TOKENS)
    held = allocator.take(5)
    assert held is not None
    allocator.free(held)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(held)


def make_arena() -> KvArena:
    return KvArena(KvShape(2, 3, 4), 64, dtype=torch.float32, device=torch.device("cpu"))


def test_what_is_written_is_read_moved_and_copied() -> None:
    arena = make_arena()
    keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    slots = torch.tensor([10, 11])
    for layer in (0, 1):
        all_keys, all_values = arena.write(layer, slots, keys + layer, values - layer)
        assert torch.equal(all_keys[:, 10:12], keys + layer)
        assert torch.equal(all_values[:, 10:12], values - layer)
    copied = arena.copy_out(10, 2)
    arena.move(10, 40, 2)
    assert torch.equal(arena.copy_out(40, 2), copied)
    arena.copy_in(20, copied)
    assert torch.equal(arena.copy_out(20, 2), copied)
    assert torch.equal(copied[2], keys + 1)


def test_bytes_per_token_are_those_of_the_arena() -> None:
    shape = KvShape(2, 3, 4)
    whole = KvArena(shape, 64, dtype=torch.float16, device=torch.device("cpu")).copy_out(0, 64)
    assert whole.nbytes == 64 * shape.bytes_per_token(torch.float16)


def test_tokens_move_down_over_themselves() -> None:
    arena = KvArena(KvShape(1, 1, 1), 4000, dtype=torch.int64, device=torch.device("cpu"))
    numbers = torch.arange(3000).view(1, -1, 1)
    arena.write(0, torch.arange(500, 3500), numbers, -numbers)
    arena.move(500, 484, 3000)
    assert torch.equal(arena.copy_out(484, 3000)[0], numbers)
    assert torch.equal(arena.copy_out(484, 3000)[1], -numbers)


def test_a_range_gives_whole_blocks_at_its_beginning_back() -> None:
    allocator = RangeAllocator(160)
    first, second = allocator.take(64), allocator.take(32)
    assert first is not None
    assert second is not None
    allocator.trim(first, 15)
    assert (first.start, first.capacity, first.offset) == (0, 64, 0)
    allocator.trim(first, 33)
    assert (first.start, first.capacity, first.offset) == (32, 32, 32)
    assert first.origin == 0
    assert allocator.num_free == 160 - 32 - 32
    allocator.trim(first, 1000)
    assert (first.capacity, first.offset) == (16, 48), "one block stays"
    assert allocator.close_gaps() == [(48, 0, 16), (64, 16, 32)]
    assert first.origin == -48
    allocator.trim(first, -20)
    assert first.offset == 48
    allocator.free(first)
    allocator.free(second)
    assert allocator.num_free == 160
