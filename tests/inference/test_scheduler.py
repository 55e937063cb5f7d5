from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from luthier.adapters.base import SoftPromptTensors
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.kv_cache import RangeAllocator
from luthier.inference.prompts import Prompt
from luthier.inference.scheduler import FairQueue, Scheduler
from luthier.inference.sequences import GeneratedSequence, Vocabulary
from luthier.resources.base_model import BaseModel


@pytest.fixture
def make_row(causal_base: BaseModel) -> Any:
    def make(num_tokens: int, *, key: str = "", max_new_tokens: int = 50) -> BatchRow:
        ids = tuple(10 + index % 300 for index in range(num_tokens))
        request = GenerationRequest(ids, SamplingParams(max_new_tokens=max_new_tokens))
        sequence = GeneratedSequence(
            request,
            prompt=Prompt(ids, None, SoftPromptTensors(), room=None),
            vocabulary=Vocabulary(causal_base.tokenizer, frozenset()),
            prior_token_ids=ids,
        )
        return BatchRow(sequence, adapter_key=key)

    return make


def scheduler_of(num_tokens: int = 4096, **limits: int) -> Scheduler:
    return Scheduler(
        RangeAllocator(num_tokens),
        num_ready=lambda key: 0,
        move=lambda source, target, count: None,
        **{"max_rows": 8, "max_step_tokens": 32, **limits},
    )


def run(slices: list[RowSlice]) -> None:
    """What the engine does with a plan: each slice is computed, complete rows get a token."""
    for each in slices:
        reaches_end = each.reaches_end
        each.row.num_computed = each.stop
        if reaches_end:
            each.row.sequence.token_ids.append(50)


def test_a_step_never_exceeds_its_token_budget_and_decoding_comes_first(make_row: Any) -> None:
    scheduler = scheduler_of()
    short, long = make_row(10), make_row(100)
    for row in (short, long):
        scheduler.waiting.add(row)
    first = scheduler.plan()
    assert [(each.row, each.count) for each in first] == [(short, 10), (long, 22)]
    run(first)
    for _ in range(4):
        slices = scheduler.plan()
        assert slices[0].row is short
        assert slices[0].count == 1
        assert sum(each.count for each in slices) <= 32
        run(slices)
    assert long.num_computed >= 100, "31 tokens of it beside every step of the other"


def test_prompts_share_what_is_left(make_row: Any) -> None:
    scheduler = scheduler_of(max_step_tokens=40)
    rows = [make_row(100), make_row(100)]
    scheduler.waiting.add(rows[0])
    run(scheduler.plan())
    scheduler.waiting.add(rows[1])
    run(scheduler.plan())  # the first takes all that is left
    assert {each.row: each.count for each in scheduler.plan()} == {rows[0]: 20, rows[1]: 20}


def test_no_more_rows_run_than_allowed(make_row: Any) -> None:
    scheduler = scheduler_of(max_rows=3, max_step_tokens=100)
    for _ in range(5):
        scheduler.waiting.add(make_row(4))
    assert len(scheduler.plan()) == 3
    scheduler.release(scheduler.running[0])
    run(scheduler.plan())
    assert len(scheduler.running) == 3
    assert len(scheduler.waiting) == 1


def test_an_adapter_that_floods_does_not_keep_others_waiting(make_row: Any) -> None:
    queue = FairQueue()
    flood = [make_row(4, key="flood") for _ in range(50)]
    others = [make_row(4, key=f"other-{index}") for index in range(3)]
    for row in (*flood, *others):
        queue.add(row)
    admitted = []
    while len(queue):
        row = next(iter(queue))
        queue.take(row)
        admitted.append(row)
    assert {admitted.index(row) for row in others} == {1, 2, 3}
    assert [row for row in admitted if row.adapter_key == "flood"] == flood


def test_the_nth_request_of_an_adapter_waits_for_at_most_n_rounds(make_row: Any) -> None:
    queue = FairQueue()
    keys = "aaaaaaabbbbc"
    for key in keys:
        queue.add(make_row(4, key=key))
    seen: Counter[str] = Counter()
    for position in range(len(keys)):
        row = next(iter(queue))
        queue.take(row)
        seen[row.adapter_key] += 1
        assert position < seen[row.adapter_key] * 3


def test_a_full_arena_takes_the_youngest_rows_range_and_gives_it_back_later(make_row: Any) -> None:
    scheduler = scheduler_of(num_tokens=16 * 12, max_step_tokens=300)
    old, young = make_row(70, max_new_tokens=100), make_row(40, max_new_tokens=100)
    scheduler.waiting.add(old)
    run(scheduler.plan())
    scheduler.waiting.add(young)
    run(scheduler.plan())
    assert young in scheduler.running
    while young in scheduler.running:
        run(scheduler.plan())
    assert young.kv is None
    assert young.num_computed == 0
    assert list(scheduler.waiting) == [young]
    num_generated = len(young.sequence.token_ids)
    assert num_generated > 0
    scheduler.release(old)
    (again,) = scheduler.plan()
    assert (again.row, again.start, again.count) == (young, 0, 40 + num_generated)


def test_the_oldest_row_always_gets_on(make_row: Any) -> None:
    scheduler = scheduler_of(num_tokens=16 * 8, max_rows=6, max_step_tokens=64)
    rows = [make_row(20, max_new_tokens=100) for _ in range(6)]
    for row in rows:
        scheduler.waiting.add(row)
    for _ in range(700):
        run(scheduler.plan())
        for row in list(scheduler.running):
            if len(row.sequence.token_ids) >= 100:
                scheduler.release(row)
    assert [len(row.sequence.token_ids) for row in rows] == [100] * 6
    assert not scheduler.running
    assert scheduler._allocator.num_free == 16 * 8


def test_taking_all_frees_all(make_row: Any) -> None:
    scheduler = scheduler_of(max_rows=2)
    rows = [make_row(10) for _ in range(4)]
    for row in rows:
        scheduler.waiting.add(row)
    scheduler.plan()
    assert set(scheduler.take_all()) == set(rows)
    assert not scheduler.running
    assert len(scheduler.waiting) == 0
    assert all(row.kv is None for row in rows)
