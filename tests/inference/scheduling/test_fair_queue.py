from __future__ import annotations

from collections import Counter

from fixtures.fake_rows import fake_row

from luthier.inference.batch_rows import BatchRow
from luthier.inference.scheduling.fair_queue import FairQueue


def queue_of(*rows: BatchRow, weights: dict[str, int] | None = None) -> FairQueue:
    queue = FairQueue(ageing_steps=10, weight_of=lambda tenant: (weights or {}).get(tenant, 1))
    for row in rows:
        queue.add(row)
    return queue


def drained(queue: FairQueue) -> list[BatchRow]:
    taken = []
    while (row := queue.next()) is not None:
        queue.take(row)
        taken.append(row)
    assert len(queue) == 0
    return taken


def test_an_adapter_that_floods_does_not_keep_others_waiting() -> None:
    flood = [fake_row(4, key="flood") for _ in range(50)]
    others = [fake_row(4, key=f"other-{index}") for index in range(3)]
    taken = drained(queue_of(*flood, *others))
    assert {taken.index(row) for row in others} == {1, 2, 3}
    assert [row for row in taken if row.adapter_key == "flood"] == flood


def test_the_nth_request_of_an_adapter_waits_for_at_most_n_rounds() -> None:
    seen: Counter[str] = Counter()
    for position, row in enumerate(
        drained(queue_of(*(fake_row(4, key=k) for k in "aaaaaaabbbbc")))
    ):
        seen[row.adapter_key] += 1
        assert position < seen[row.adapter_key] * 3


def test_a_tenant_with_many_adapters_gets_no_more_turns_than_one_with_one() -> None:
    many = [fake_row(4, key=f"{index}", tenant="many") for index in range(30)]
    one = [fake_row(4, tenant="one") for _ in range(10)]
    taken = drained(queue_of(*many, *one))
    assert [row.tenant for row in taken[:20]] == ["many", "one"] * 10


def test_turns_follow_the_weights() -> None:
    rows = [fake_row(4, tenant=tenant) for tenant in "ab" for _ in range(40)]
    taken = drained(queue_of(*rows, weights={"a": 3}))
    assert Counter(row.tenant for row in taken[:40]) == {"a": 30, "b": 10}


def test_a_tenant_that_was_away_does_not_save_up_turns() -> None:
    queue = queue_of(*(fake_row(4, tenant="busy") for _ in range(50)))
    for _ in range(20):
        row = queue.next()
        assert row is not None
        queue.take(row)
    for _ in range(10):
        queue.add(fake_row(4, tenant="back"))
    assert [row.tenant for row in drained(queue)[:10]].count("back") == 5


def test_priorities_order_a_tenants_own_requests_and_never_anothers() -> None:
    low, high = fake_row(4, key="a"), fake_row(4, key="b", priority=3)
    other = fake_row(4, tenant="other", priority=-3)
    assert drained(queue_of(low, high, other)) == [high, other, low]


def test_age_lifts_a_row_to_the_highest_that_waits_and_no_further() -> None:
    old = [fake_row(4, key="flood") for _ in range(5)]
    queue = queue_of(*old)
    for _ in range(1000):
        queue.tick()
    queue.add(fake_row(4, key="new"))
    assert [row.adapter_key for row in drained(queue)][:2] == ["flood", "new"], "age is no claim"
    queue = queue_of(old[0])
    for _ in range(29):
        queue.tick()
    urgent = fake_row(4, key="urgent", priority=3)
    queue.add(urgent)
    assert queue.next() is urgent
    queue.tick()
    assert queue.next() is old[0]


def test_a_row_that_is_put_back_keeps_its_place_and_its_turn() -> None:
    rows = [fake_row(4, key="a") for _ in range(3)]
    other = fake_row(4, key="b")
    queue = queue_of(*rows, other)
    queue.take(rows[0])
    queue.put_back(rows[0], is_next=True)
    assert drained(queue) == [rows[0], other, rows[1], rows[2]]
    queue = queue_of(*rows, other)
    queue.take(rows[0])
    queue.put_back(rows[0], is_next=False)
    assert drained(queue) == [other, rows[0], rows[1], rows[2]]


def test_who_is_passed_over_is_not_asked() -> None:
    first, second = fake_row(4, key="a"), fake_row(4, key="b", tenant="t")
    queue = queue_of(first, second)
    assert queue.next({first.flow}) is second
    assert queue.next({first.flow, second.flow}) is None


def test_a_row_can_be_removed_once() -> None:
    row, other = fake_row(4), fake_row(4)
    queue = queue_of(row, other)
    assert queue.remove(row)
    assert not queue.remove(row)
    assert list(queue) == [other]
    assert queue.num_of("") == 1
    assert queue.num_of("nobody") == 0
