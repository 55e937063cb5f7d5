from __future__ import annotations

import math
import random
from collections.abc import Callable

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
from luthier.inference.scheduling.scheduler import Scheduler


def require_token_within(
    bound: int,
    row: BatchRow,
    scheduler: Scheduler,
    runner: FakeRunner,
    flood: Callable[[], None],
) -> None:
    for _ in range(bound):
        flood()
        runner.step(scheduler)
        if row.sequence.token_ids:
            return
    raise AssertionError(f"no token after {bound} steps")


def test_beams_come_and_go_together_and_compute_their_prompt_once() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory), FakeRunner(memory)
    beams = fake_row(20, num_beams=4, max_new_tokens=3)
    add(scheduler, beams)
    (first,) = scheduler.plan()
    assert (first.row, first.count) == (beams, 20)
    assert scheduler.running == list(beams.members), "their places are taken"
    runner.run([first])
    assert [(each.row, each.start, each.count) for each in scheduler.plan()] == [
        (row, 20, 1) for row in beams.members
    ]
    while not runner.step(scheduler):
        pass
    assert runner.num_computed == 20 + 4 + 4
    assert not scheduler.running
    assert memory.allocator.num_free == memory.allocator.num_tokens


def test_no_more_beams_than_allowed_run_at_once_and_others_pass_them() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_beam_rows=4), FakeRunner(memory)
    add(scheduler, *(fake_row([index] * 4, num_beams=3) for index in range(2)))
    add(scheduler, *(fake_row([index] * 4) for index in range(5, 8)))
    runner.step(scheduler)
    assert sum(row.is_beam for row in scheduler.running) == 3
    assert len(scheduler.running) == 6, "rows of one token a step need not wait for beams"


def test_beams_that_had_to_make_way_go_on_with_their_texts() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_rows=4, turn_tokens=5), FakeRunner(memory)
    beams = fake_row([1] * 20, num_beams=4, max_new_tokens=30)
    add(scheduler, beams)
    for _ in range(8):
        runner.step(scheduler)
    texts = [list(row.generated_ids) for row in beams.members]
    other = fake_row([2] * 20, key="other", max_new_tokens=4)
    add(scheduler, other)
    runner.step(scheduler)
    assert scheduler.running == [other]
    assert all(row.kv is None for row in beams.members)
    assert [list(row.generated_ids) for row in beams.members] == texts
    ended: list[BatchRow] = []
    while beams not in ended:  # the runner compares each position with the texts
        ended += runner.step(scheduler)
    assert ended == [other, beams]


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_flood_of_beams_delays_no_other_request_beyond_the_stated_bound(seed: int) -> None:
    rng = random.Random(seed)
    memory = fake_memory(200_000)
    num_tenants, num_adapters = rng.randint(1, 3), rng.randint(1, 2)
    widest = rng.randint(1, 8)
    max_rows = (num_tenants + 1) * (num_adapters + 2) * widest + rng.randint(0, 8)
    max_step_tokens = 2 * max_rows + rng.randint(0, 60)
    scheduler = scheduler_of(
        memory,
        max_rows=max_rows,
        max_step_tokens=max_step_tokens,
        max_beam_rows=rng.randint(widest, max_rows),
    )
    runner = FakeRunner(memory)

    def flooding() -> BatchRow:
        flow = rng.randrange(max(1, num_tenants * num_adapters - 1))
        return fake_row(
            [rng.randrange(99)] * rng.randint(1, 120),
            key=f"adapter-{flow % num_adapters}",
            tenant=f"tenant-{flow // num_adapters}",
            max_new_tokens=rng.randint(1, 100),
            num_beams=rng.choice([1, widest, rng.randint(1, widest)]),
        )

    def flood() -> None:
        add(scheduler, *(flooding() for _ in range(rng.randint(0, 3))))

    for _ in range(rng.randint(0, 40)):
        flood()
        runner.step(scheduler)
    newcomer = fake_row([1000] * rng.randint(1, 200), key="new", tenant=f"tenant-{num_tenants}")
    add(scheduler, newcomer)
    share = 1 + (max_step_tokens - max_rows) // (num_tenants + 1) // num_adapters
    piece = min(32, max_step_tokens // 4)
    bound = 1 + max_rows // 4 + math.ceil((newcomer.num_positions + piece) / share)
    require_token_within(bound, newcomer, scheduler, runner, flood)


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_beams_wait_no_longer_than_stated_while_others_flood(seed: int) -> None:
    rng = random.Random(seed)
    max_rows = rng.randint(3, 8)
    max_beam_rows = rng.randint(2, max_rows)
    turn_tokens = rng.randint(1, 20)
    num_flows = rng.randint(1, 6)
    # Room for the widest search with its longest text, and for some others beside it.
    memory = fake_memory(208 * (max_beam_rows + rng.randint(0, 4)))
    scheduler = scheduler_of(
        memory, max_rows=max_rows, turn_tokens=turn_tokens, max_beam_rows=max_beam_rows
    )
    runner = FakeRunner(memory)

    def flood() -> None:
        if rng.random() < 0.3:
            flow = rng.randrange(num_flows)
            row = fake_row(
                [rng.randrange(50)] * rng.randint(1, 60),
                key=f"{flow}",
                tenant=f"{flow % 3}",
                max_new_tokens=rng.randint(1, 140),
                num_beams=rng.choice([1, 1, rng.randint(1, max_beam_rows)]),
            )
            add(scheduler, row)

    for _ in range(rng.randint(0, 150)):
        flood()
        runner.step(scheduler)
    newcomer = fake_row(
        [1000] * rng.randint(1, 60),
        key="new",
        tenant=rng.choice(["0", "new"]),
        num_beams=rng.randint(2, max_beam_rows),
    )
    add(scheduler, newcomer)
    longest = 60 + 140
    # Each adapter of the flood has two flows: its searches and its other requests.
    bound = (2 * num_flows + 1 + 1) * (longest + 8 + max_rows // 4 + turn_tokens)
    require_token_within(bound, newcomer, scheduler, runner, flood)


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_whatever_comes_and_goes_every_beam_reads_its_own_and_every_range_is_freed(
    seed: int,
) -> None:
    rng = random.Random(seed)
    memory = fake_memory(16 * rng.randint(40, 60), num_prefix_tokens=rng.choice([0, 40, 5000]))
    max_rows = rng.randint(1, 6)
    scheduler = scheduler_of(
        memory,
        max_rows=max_rows,
        max_beam_rows=rng.randint(1, max_rows),
        max_step_tokens=rng.randint(1, 60),
        turn_tokens=rng.randint(1, 30),
    )
    most_beams = min(4, scheduler._rules.max_beam_rows)
    runner = FakeRunner(memory)
    num_rounds = rng.randint(20, 120)
    come_and_go(scheduler, runner, rng, num_rounds=num_rounds, most_beams=most_beams)
    check_ranges(memory, scheduler)
