from __future__ import annotations

from fixtures.fake_rows import FakeRunner, contents, expected_contents, fake_memory, fake_row

from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.memory.kv_memory import KvMemory


def computed(memory: KvMemory, row: BatchRow) -> BatchRow:
    """Admit a row and compute all of it."""
    assert memory.admit(row)
    FakeRunner(memory).run([RowSlice(row, row.num_computed, row.num_pending)])
    return row


def test_a_row_starts_from_the_longest_beginning_that_another_left() -> None:
    memory = fake_memory(num_prefix_tokens=1000)
    first = computed(memory, fake_row([*range(50)]))
    memory.release(first)
    for token_ids, num_known in (
        ([*range(60)], 48),
        ([*range(48)], 47),
        ([*range(40), 7, 7, 7, 7, 7, 7, 7, 7], 32),
        ([*range(10)], 0),
        ([9, *range(1, 60)], 0),
    ):
        row = fake_row(token_ids)
        assert memory.admit(row)
        assert row.num_computed == num_known
        assert contents(memory, row, num_known) == expected_contents(row, num_known)


def test_a_running_row_shares_what_it_has_computed() -> None:
    memory = fake_memory(num_prefix_tokens=1000)
    running = computed(memory, fake_row([*range(40)]))
    other = fake_row([*range(50)])
    assert memory.admit(other)
    assert other.num_computed == 32
    assert running.kv is not None


def test_another_adapter_never_finds_the_same_tokens() -> None:
    memory = fake_memory(num_prefix_tokens=1000)
    memory.release(computed(memory, fake_row([*range(50)], key="old tensors")))
    for key in ("new tensors", ""):
        row = fake_row([*range(50)], key=key)
        assert memory.admit(row)
        assert row.num_computed == 0


def test_virtual_tokens_are_the_first_block_whatever_their_number() -> None:
    memory = fake_memory(num_prefix_tokens=1000)
    memory.release(computed(memory, fake_row([*range(5)], key="tuned", num_virtual=21)))
    row = fake_row([7, 8], key="tuned", num_virtual=21)
    assert memory.admit(row)
    assert row.num_computed == 21
    assert contents(memory, row, 21) == expected_contents(row, 21)


def test_a_measured_prompt_is_computed_behind_the_virtual_tokens() -> None:
    memory = fake_memory(num_prefix_tokens=1000)
    memory.release(computed(memory, fake_row([*range(50)], key="tuned", num_virtual=21)))
    row = fake_row([*range(50)], key="tuned", num_virtual=21)
    row.sequence.num_unreported_prompt = 49  # type: ignore[misc]
    assert memory.admit(row)
    assert row.num_computed == 21


def test_a_beginning_longer_than_the_limit_keeps_its_first_blocks() -> None:
    memory = fake_memory(num_prefix_tokens=40)
    memory.release(computed(memory, fake_row([*range(200)])))
    row = fake_row([*range(200)])
    assert memory.admit(row)
    assert row.num_computed == 32


def test_nothing_is_kept_without_bytes_for_it() -> None:
    memory = fake_memory(num_prefix_tokens=0)
    memory.release(computed(memory, fake_row([*range(50)], key="tuned", num_virtual=16)))
    row = fake_row([*range(50)], key="tuned", num_virtual=16)
    assert memory.admit(row)
    assert row.num_computed == 0


def test_gaps_are_put_together_for_a_row_that_needs_them() -> None:
    memory = fake_memory(16 * 12)
    rows = [computed(memory, fake_row([n] * 30, max_new_tokens=2)) for n in range(6)]
    for row in rows[::2]:
        memory.release(row)
    large = fake_row([9] * 90, max_new_tokens=2)
    assert memory.admit(large), "96 tokens are free in three places"
    for row in rows[1::2]:
        assert contents(memory, row, 30) == expected_contents(row, 30)


def test_a_row_grows_into_gaps_that_do_not_adjoin_it() -> None:
    memory = fake_memory(16 * 9)
    rows = [computed(memory, fake_row([n] * 30, max_new_tokens=1)) for n in range(4)]
    memory.release(rows[0])
    growing = rows[2]
    growing.sequence.token_ids.extend([50] * 30)
    assert memory.grow(growing, 60)
    assert growing.kv is not None
    assert growing.kv.capacity >= 60
    for row in rows[1:]:
        assert contents(memory, row, 30) == expected_contents(row, 30)
    assert not memory.grow(growing, 100)


def test_a_row_without_room_holds_nothing() -> None:
    memory = fake_memory(64)
    computed(memory, fake_row(40))
    refused = fake_row(40)
    assert not memory.admit(refused)
    assert refused.kv is None
    assert memory.allocator.num_free == 16
