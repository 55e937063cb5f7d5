from __future__ import annotations

from fixtures.fake_rows import FakeRunner, add, fake_memory, fake_row, scheduler_of

from luthier.inference.batch_rows import BatchRow
from luthier.inference.beam_rows import BeamGroup
from luthier.inference.memory.kv_cache import KvRange
from luthier.inference.scheduling.preemption import first_to_go, may_pass, victims_for
from luthier.inference.scheduling.scheduler import Scheduler
from luthier.inference.scheduling.scheduling_rules import SchedulingRules

RULES = SchedulingRules(max_rows=4, max_step_tokens=32, max_beam_rows=2, turn_tokens=5)
#: The tenant "heavy" weighs as much as three others.
WEIGHTED = SchedulingRules(
    max_rows=4, max_step_tokens=32, weight_of=lambda tenant: 3 if tenant == "heavy" else 1
)


def row_of(flow: str, *, said: int = 0, num_beams: int = 1) -> BatchRow:
    """A row of a flow, written as tenant and adapter, which has said so many tokens."""
    tenant, _, key = flow.partition("/")
    row = fake_row(10, tenant=tenant, key=key, num_beams=num_beams)
    row.sequence.token_ids.extend([7] * said)
    return row


def rows_of(*flows: str) -> list[BatchRow]:
    return [row_of(flow) for flow in flows]


def test_the_youngest_row_of_the_flow_with_most_goes_first() -> None:
    rows = rows_of("t/a", "t/b", "t/a", "t/b", "t/b", "t/c")
    assert first_to_go(rows, RULES) is rows[4]


def test_of_rows_with_equal_shares_one_that_had_its_turn_goes_first() -> None:
    rows = [row_of("t/a", said=4), row_of("t/b", said=5), row_of("t/c"), row_of("t/d", said=4)]
    assert first_to_go(rows, RULES) is rows[1]


def test_among_rows_of_one_flow_turns_do_not_count() -> None:
    rows = [row_of("t/a", said=9), row_of("t/a"), row_of("t/a")]
    assert first_to_go(rows, RULES) is rows[2]


def test_the_tenant_with_most_for_its_weight_gives_first() -> None:
    rows = rows_of("heavy/a", "heavy/a", "light/b", "heavy/a")
    assert first_to_go(rows, RULES) is rows[3]
    assert first_to_go(rows, WEIGHTED) is rows[3], "both have one for each weight: the youngest"
    assert first_to_go([*rows, row_of("light/b")], WEIGHTED).tenant == "light"


def test_a_search_counts_as_one_where_somebody_must_go() -> None:
    beams = row_of("t/a", num_beams=3)
    rows = [*beams.members, *rows_of("t/b", "t/b")]
    assert first_to_go(rows, RULES) is rows[4]


def test_nobody_goes_while_there_is_room() -> None:
    assert victims_for(row_of("t/b"), rows_of("t/a", "t/a", "t/a"), 0, RULES) == []


def test_a_flow_with_less_than_its_share_gets_places_until_shares_are_equal() -> None:
    running = rows_of("t/a", "t/a", "t/a", "t/a")
    assert victims_for(row_of("t/b"), running, 0, RULES) == [running[3]]
    running[3] = row_of("t/b")
    assert victims_for(row_of("t/b"), running, 0, RULES) == [running[2]]
    running[2] = row_of("t/b")
    assert victims_for(row_of("t/b"), running, 0, RULES) is None, "two each"


def test_tenants_come_before_their_flows_and_by_weight() -> None:
    running = rows_of("light/a", "light/b", "light/c", "light/d")
    assert victims_for(row_of("heavy/x"), running, 0, RULES) == [running[3]]
    running = rows_of("light/a", "heavy/x", "heavy/x", "heavy/x")
    assert victims_for(row_of("light/b"), running, 0, RULES) == [running[3]]
    assert victims_for(row_of("light/b"), running, 0, WEIGHTED) is None


def test_a_flow_without_a_place_takes_that_of_one_that_had_its_turn() -> None:
    running = [row_of("t/a"), row_of("t/b", said=5), row_of("t/c", said=9), row_of("t/d", said=4)]
    assert victims_for(row_of("t/e"), running, 0, RULES) == [running[2]]
    assert victims_for(row_of("t/d"), running, 0, RULES) is None, "it has one"


def test_as_many_go_as_memory_asks_for_or_nobody() -> None:
    running = rows_of("t/a", "t/a", "t/a", "t/a")
    for row in running:
        row.kv = KvRange(0, 16)
    newcomer = row_of("t/b")
    assert victims_for(newcomer, running, 16, RULES) == [running[3]]
    assert victims_for(newcomer, running, 17, RULES) == [running[3], running[2]]
    assert victims_for(newcomer, running, 49, RULES) is None, "the last one has as good a claim"


def test_beams_go_together_and_only_they_make_way_where_beams_are_too_many() -> None:
    search = BeamGroup(row_of("t/a", num_beams=2).sequence, adapter_key="a")  # type: ignore[arg-type]
    for beam in search.rows:
        beam.beam_ids = [7] * 5
    running = [*search.rows, row_of("u/b", said=9), row_of("u/b", said=9)]
    assert victims_for(row_of("v/c"), running, 0, RULES) == [running[3]]
    assert victims_for(row_of("v/c", num_beams=2), running, 0, RULES) == [search.rows[1]]


def test_a_row_passes_waiting_beams_while_it_would_have_no_more_than_they() -> None:
    beams = row_of("t/a", num_beams=2)
    running = [*rows_of("t/b", "u/c"), beams]
    assert may_pass(row_of("t/c"), beams, running, RULES)
    assert not may_pass(row_of("t/b"), beams, running, RULES)
    assert may_pass(row_of("u/c"), beams, running, RULES)
    assert not may_pass(row_of("u/c"), beams, [*running, row_of("u/c")], RULES)
    assert may_pass(row_of("heavy/c"), beams, [*running, *rows_of(*["heavy/c"] * 3)], WEIGHTED)


def steps_until(scheduler: Scheduler, runner: FakeRunner, row: BatchRow, most: int) -> int:
    """Steps until a row has its first token."""
    for step in range(1, most + 1):
        runner.step(scheduler)
        if row.sequence.token_ids:
            return step
    raise AssertionError(f"no token after {most} steps")


def test_the_oldest_row_always_gets_on() -> None:
    memory = fake_memory(16 * 8)
    scheduler, runner = scheduler_of(memory, max_rows=6, max_step_tokens=64), FakeRunner(memory)
    rows = [fake_row([index] * 20, max_new_tokens=100) for index in range(6)]
    add(scheduler, *rows)
    left: list[BatchRow] = []
    for _ in range(700):
        left += runner.step(scheduler)
    assert left == rows
    assert memory.allocator.num_free == 16 * 8


def test_adapters_that_do_not_fit_together_take_turns() -> None:
    memory = fake_memory(16 * 8)
    scheduler, runner = scheduler_of(memory, turn_tokens=10), FakeRunner(memory)
    rows = [fake_row([index] * 20, key=f"{index}", max_new_tokens=100) for index in range(3)]
    add(scheduler, *rows)
    most_behind = 0
    for _ in range(600):
        runner.step(scheduler)
        said = [len(row.sequence.token_ids) for row in rows]
        most_behind = max(most_behind, max(said) - min(said))
    assert said == [100] * 3
    assert most_behind < 90, "none had to wait for another's end"


def test_a_newcomer_takes_the_place_of_one_that_had_its_turn() -> None:
    memory = fake_memory()
    scheduler, runner = scheduler_of(memory, max_rows=1, turn_tokens=10), FakeRunner(memory)
    endless = fake_row([1] * 20, key="endless", max_new_tokens=3000)
    add(scheduler, endless)
    for _ in range(50):
        runner.step(scheduler)
    first, second = (fake_row([n] * 20, key=f"{n}", max_new_tokens=3000) for n in (2, 3))
    add(scheduler, first, second)
    assert steps_until(scheduler, runner, first, most=1) == 1
    assert steps_until(scheduler, runner, second, most=11) == 10
    said = len(endless.sequence.token_ids)
    for _ in range(60):
        runner.step(scheduler)
    assert len(endless.sequence.token_ids) > said, "it comes back after the others' turns"
