from __future__ import annotations

import math
import random

import pytest
from fixtures.fake_rows import (
    FakeRunner,
    add,
    check_ranges,
    come_and_go,
    fake_memory,
    fake_row,
    scheduler_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.inference.batch_rows import BatchRow


def test_a_step_never_exceeds_its_token_budget_and_decoding_comes_first() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory), FakeRunner(memory)
    short, long = fake_row(10, key="a"), fake_row(100, key="b")
    add(scheduler, short, long)
    first = scheduler.plan()
    assert [(each.row, each.count) for each in first] == [(short, 10), (long, 22)]
    runner.run(first)
    for _ in range(4):
        slices = scheduler.plan()
        assert slices[0].row is short
        assert slices[0].count == 1
        assert sum(each.count for each in slices) <= 32
        runner.run(slices)
    assert long.num_computed >= 100, "31 tokens of it beside every step of the other"


@pytest.mark.parametrize(
    ("num_tokens", "steps"), [(128, [128]), (140, [140]), (160, [160]), (161, [128, 33])]
)
def test_the_last_few_tokens_of_a_prompt_need_no_step_of_their_own(
    num_tokens: int, steps: list[int]
) -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_step_tokens=128), FakeRunner(memory)
    add(scheduler, fake_row(num_tokens))
    counts = []
    for _ in steps:
        slices = scheduler.plan()
        counts += [each.count for each in slices]
        runner.run(slices)
    assert counts == steps


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_ends_of_prompts_add_a_quarter_to_a_step_at_most_and_take_from_nobody(seed: int) -> None:
    rng = random.Random(seed)
    memory = fake_memory(8192)
    max_rows = rng.randint(1, 9)
    scheduler = scheduler_of(memory, max_rows=max_rows, max_step_tokens=rng.randint(1, 150))
    most, runner = scheduler._rules.step_tokens, FakeRunner(memory)
    stretch, before = scheduler._stretch, dict[BatchRow, int]()

    def noting(counts: dict[BatchRow, int]) -> None:
        before.update(counts)
        stretch(counts)

    scheduler._stretch = noting  # type: ignore[method-assign]
    for index in range(80):
        if rng.random() < 0.4:
            length = rng.randint(1, 250)
            adapter, tenant = f"{rng.randrange(3)}", f"{rng.randrange(2)}"
            add(scheduler, fake_row([index] * length, key=adapter, tenant=tenant))
        before.clear()
        slices = scheduler.plan()
        assert sum(each.count for each in slices) <= most + most // 4
        for each in slices:
            count = before.get(each.row, 1)
            assert each.count == count or (each.reaches_end and each.count > count)
        assert sum(before.get(each.row, 1) for each in slices) <= most
        for row in runner.run(slices):
            if len(row.sequence.token_ids) >= 20:
                scheduler.release(row)


def test_a_small_budget_still_moves_every_prompt_beside_rows_that_decode() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_step_tokens=1, max_rows=4), FakeRunner(memory)
    rows = [fake_row([index] * 40) for index in range(4)]
    add(scheduler, *rows)
    for _ in range(40):
        runner.step(scheduler)
    assert all(row.sequence.token_ids for row in rows)


def test_no_more_rows_than_allowed_run_at_once() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_rows=3), FakeRunner(memory)
    add(scheduler, *(fake_row([index] * 4) for index in range(5)))
    runner.step(scheduler)
    assert len(scheduler.running) == 3
    scheduler.release(scheduler.running[0])
    runner.step(scheduler)
    assert len(scheduler.running) == 3
    assert len(scheduler.waiting) == 1


def test_a_full_arena_takes_the_youngest_rows_range_and_gives_it_back_later() -> None:
    memory = fake_memory(16 * 12)
    scheduler, runner = scheduler_of(memory, max_step_tokens=300), FakeRunner(memory)
    old, young = fake_row([1] * 70, max_new_tokens=100), fake_row([2] * 40, max_new_tokens=100)
    add(scheduler, old)
    runner.step(scheduler)
    add(scheduler, young)
    runner.step(scheduler)
    assert young in scheduler.running
    while young in scheduler.running:
        runner.step(scheduler)
    assert young.kv is None
    assert young.num_computed == 0
    assert list(scheduler.waiting) == [young]
    num_generated = len(young.sequence.token_ids)
    assert num_generated > 0
    scheduler.release(old)
    (again,) = scheduler.plan()
    assert (again.row, again.start, again.count) == (young, 0, 40 + num_generated)


def test_a_preempted_row_goes_on_from_the_blocks_it_left() -> None:
    memory = fake_memory(16 * 12, num_prefix_tokens=1000)
    scheduler, runner = scheduler_of(memory, max_step_tokens=300), FakeRunner(memory)
    old, young = fake_row([1] * 70, max_new_tokens=100), fake_row([2] * 40, max_new_tokens=100)
    add(scheduler, old)
    runner.step(scheduler)
    add(scheduler, young)
    runner.step(scheduler)
    while young in scheduler.running:
        runner.step(scheduler)
    num_computed = young.num_positions - 1
    scheduler.release(old)
    (again,) = scheduler.plan()
    assert again.row is young
    assert again.start == num_computed // 16 * 16
    runner.run([again])


def test_a_large_request_is_not_passed_by_small_ones_for_ever() -> None:
    memory = fake_memory(16 * 12)
    scheduler, runner = scheduler_of(memory, turn_tokens=10), FakeRunner(memory)
    large = fake_row([99] * 150, key="large")
    for step in range(200):
        add(scheduler, fake_row([step] * 30, key=f"{step % 6}", max_new_tokens=25))
        if step == 20:
            add(scheduler, large)
        runner.step(scheduler)
        if large.sequence.token_ids:
            break
    assert large.sequence.token_ids


def test_taking_all_frees_all() -> None:
    memory = fake_memory()
    scheduler = scheduler_of(memory, max_rows=2)
    rows = [fake_row([index] * 10) for index in range(4)]
    add(scheduler, *rows)
    scheduler.plan()
    assert set(scheduler.take_all()) == set(rows)
    assert not scheduler.running
    assert len(scheduler.waiting) == 0
    assert all(row.kv is None for row in rows)
    assert memory.allocator.num_free == memory.allocator.num_tokens


def test_rows_with_the_same_beginning_let_the_first_compute_it() -> None:
    memory = fake_memory(num_prefix_tokens=4096)
    scheduler, runner = scheduler_of(memory, max_step_tokens=64), FakeRunner(memory)
    rows = [fake_row([7] * 160 + [index] * 8, max_new_tokens=1) for index in range(6)]
    add(scheduler, *rows)
    for _ in range(20):
        runner.step(scheduler)
    assert not scheduler.running
    assert runner.num_computed == 160 + 6 * 8


def test_rows_that_ended_are_forgotten_however_many_followed_each_other() -> None:
    memory = fake_memory(num_prefix_tokens=4096)
    scheduler, runner = scheduler_of(memory), FakeRunner(memory)
    rows = [fake_row([7] * 100 + [index] * 50, max_new_tokens=1) for index in range(3)]
    add(scheduler, *rows)
    while scheduler.running or len(scheduler.waiting):
        runner.step(scheduler)
    assert [row.leader for row in rows] == [None] * 3


def test_a_row_that_follows_another_does_not_hold_up_its_neighbours() -> None:
    memory = fake_memory(num_prefix_tokens=4096)
    scheduler, runner = scheduler_of(memory), FakeRunner(memory)
    leader, follower, other = fake_row([7] * 300), fake_row([7] * 300 + [8]), fake_row([9] * 8)
    add(scheduler, leader, follower, other)
    runner.step(scheduler)
    assert scheduler.running == [leader, other]
    assert list(scheduler.waiting) == [follower]


def test_a_higher_priority_comes_first_and_age_makes_up_for_it() -> None:
    memory = fake_memory()
    scheduler = scheduler_of(memory, max_rows=1, ageing_steps=5)
    runner = FakeRunner(memory)
    low = fake_row([1] * 4, priority=-1, max_new_tokens=1)
    add(scheduler, low)
    num_before = 0
    while not low.sequence.token_ids:
        add(scheduler, *(fake_row([2] * 4, priority=2, max_new_tokens=1) for _ in range(2)))
        runner.step(scheduler)
        num_before += 1
    assert 15 <= num_before <= 17, "three priorities lower is 15 steps later"


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_flood_delays_nobody_beyond_the_stated_bound(seed: int) -> None:
    rng = random.Random(seed)
    max_rows = rng.randint(2, 9)
    max_step_tokens = rng.randint(2 * max_rows, 120)
    memory = fake_memory(8192, num_prefix_tokens=rng.choice([0, 500]))
    scheduler = scheduler_of(memory, max_rows=max_rows, max_step_tokens=max_step_tokens)
    runner = FakeRunner(memory)
    num_tenants = rng.randint(1, max_rows)
    num_adapters = rng.randint(1, max(1, max_rows // num_tenants))

    def flood(index: int) -> BatchRow:
        # Every flow but the last one of the last tenant, which is the newcomer's.
        flow = rng.randrange(max(1, num_tenants * num_adapters - 1))
        return fake_row(
            [index] * rng.randint(1, 120),
            key=f"adapter-{flow % num_adapters}",
            tenant=f"tenant-{flow // num_adapters}",
            max_new_tokens=rng.randint(1, 300),
        )

    add(scheduler, *(flood(index) for index in range(40)))
    for _ in range(rng.randint(0, 60)):
        runner.step(scheduler)
    newcomer = fake_row(
        [1000] * rng.randint(1, 200),
        key=f"adapter-{num_adapters - 1}",
        tenant=f"tenant-{num_tenants - 1}",
    )
    if num_tenants * num_adapters == 1:
        newcomer.adapter_key = "another"  # the only flow is the flood's
        num_adapters = 2 if max_rows >= 2 else 1
    add(scheduler, newcomer)
    num_tokens = newcomer.num_positions
    share = 1 + (max_step_tokens - max_rows) // num_tenants // num_adapters
    piece = min(32, max_step_tokens // 4)
    bound = 1 + max_rows // 4 + math.ceil((num_tokens + piece) / share)
    for step in range(1, bound + 1):
        add(scheduler, *(flood(100 + step) for _ in range(rng.randint(0, 3))))
        runner.step(scheduler)
        if newcomer.sequence.token_ids:
            return
    raise AssertionError(f"no token after {bound} steps")


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_more_flows_than_places_or_memory_still_wait_no_longer_than_stated(seed: int) -> None:
    rng = random.Random(seed)
    max_rows = rng.randint(1, 3)
    turn_tokens = rng.randint(1, 20)
    memory = fake_memory(16 * rng.randint(13, 30), num_prefix_tokens=rng.choice([0, 100]))
    scheduler = scheduler_of(memory, max_rows=max_rows, max_step_tokens=8, turn_tokens=turn_tokens)
    runner = FakeRunner(memory)
    num_flows = rng.randint(2, 6)

    def flood(flow: int) -> BatchRow:
        return fake_row(
            [rng.randrange(50)] * rng.randint(1, 60),
            key=f"{flow}",
            tenant=f"{flow % 2}",
            max_new_tokens=rng.randint(1, 140),
        )

    for flow in range(num_flows):
        add(scheduler, *(flood(flow) for _ in range(3)))
    for _ in range(rng.randint(0, 80)):
        runner.step(scheduler)
    newcomer = fake_row([1000] * rng.randint(1, 60), key="new", tenant="0")
    add(scheduler, newcomer)
    longest = 60 + 140
    bound = (num_flows + 1 + 1) * (longest + 2 + max_rows // 4 + turn_tokens)
    for _ in range(bound):
        if rng.random() < 0.2:
            add(scheduler, flood(rng.randrange(num_flows)))
        runner.step(scheduler)
        if newcomer.sequence.token_ids:
            return
    raise AssertionError(f"no token after {bound} steps")


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_whatever_comes_and_goes_every_row_reads_its_own_and_every_range_is_freed(
    seed: int,
) -> None:
    rng = random.Random(seed)
    num_tokens = 16 * rng.randint(10, 40)
    memory = fake_memory(num_tokens, num_prefix_tokens=rng.choice([0, 40, 300, 5000]))
    scheduler = scheduler_of(
        memory,
        max_rows=rng.randint(1, 6),
        max_step_tokens=rng.randint(1, 60),
        turn_tokens=rng.randint(1, 30),
    )
    runner = FakeRunner(memory)
    come_and_go(scheduler, runner, rng, num_rounds=rng.randint(20, 150))
    memory.prefixes.clear()
    assert memory.prefixes.num_bytes == 0
    check_ranges(memory, scheduler)
