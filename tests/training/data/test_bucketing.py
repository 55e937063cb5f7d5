"""Which rows go together: complete, repeatable, and independent of how a window is cut."""

from itertools import chain, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.training.data.bucketing import (
    Window,
    deal_window,
    num_batches,
    num_windows,
    plan_epoch,
    plan_evaluation,
)

LENGTHS = [(7 * index * index + 3 * index) % 97 + 1 for index in range(700)]


def _rows(windows: list[Window]) -> list[list[int]]:
    return [sorted(chain.from_iterable(window)) for window in windows]


def _padded(batches: list[list[int]]) -> int:
    return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=120),
    batch_size=st.integers(1, 9),
    accumulate_steps=st.integers(1, 5),
    group_by_length=st.booleans(),
)
def test_every_row_appears_once_and_no_batch_is_too_large(
    lengths: list[int], batch_size: int, accumulate_steps: int, group_by_length: bool
) -> None:
    windows = plan_epoch(
        lengths,
        batch_size=batch_size,
        accumulate_steps=accumulate_steps,
        seed=1,
        epoch=0,
        group_by_length=group_by_length,
    )
    batches = list(chain.from_iterable(windows))
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, windows)) <= accumulate_steps
    sizes = {"batch_size": batch_size, "accumulate_steps": accumulate_steps}
    assert len(windows) == num_windows(len(lengths), **sizes)
    assert len(batches) == num_batches(len(lengths), **sizes)


def test_k_batches_of_b_learn_from_the_rows_of_one_batch_of_k_times_b() -> None:
    for group_by_length in (True, False):
        for epoch in range(2):
            plans = [
                plan_epoch(
                    LENGTHS,
                    batch_size=batch_size,
                    accumulate_steps=24 // batch_size,
                    seed=5,
                    epoch=epoch,
                    group_by_length=group_by_length,
                )
                for batch_size in (24, 8, 3, 1)
            ]
            assert all(_rows(plan) == _rows(plans[0]) for plan in plans)


def test_a_plan_depends_on_seed_and_epoch_and_nothing_else() -> None:
    plans = [
        plan_epoch(LENGTHS, batch_size=8, accumulate_steps=2, seed=seed, epoch=epoch)
        for seed, epoch in [(1, 0), (1, 0), (1, 1), (2, 0)]
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def test_bucketing_pads_far_less_than_random_batches() -> None:
    def padding(group_by_length: bool) -> float:
        windows = plan_epoch(
            LENGTHS,
            batch_size=8,
            accumulate_steps=1,
            seed=3,
            epoch=0,
            group_by_length=group_by_length,
        )
        return _padded(list(chain.from_iterable(windows))) / sum(LENGTHS) - 1

    assert padding(True) < 0.1 * padding(False)


def test_updates_do_not_come_in_order_of_length() -> None:
    windows = plan_epoch(LENGTHS, batch_size=8, accumulate_steps=1, seed=3, epoch=0)
    longest = [max(LENGTHS[row] for row in window[0]) for window in windows]
    rises = sum(first < second for first, second in pairwise(longest))
    assert 0.3 < rises / (len(longest) - 1) < 0.7


def test_evaluation_covers_every_row_once() -> None:
    batches = plan_evaluation(LENGTHS, batch_size=16)
    assert sorted(chain.from_iterable(batches)) == list(range(len(LENGTHS)))
    assert _padded(batches) < 1.05 * sum(LENGTHS)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    accumulate_steps=st.integers(1, 5),
    num_processes=st.integers(1, 5),
)
def test_a_window_is_dealt_whole_and_evenly(
    lengths: list[int], batch_size: int, accumulate_steps: int, num_processes: int
) -> None:
    sizes = {"batch_size": batch_size, "accumulate_steps": accumulate_steps}
    windows = plan_epoch(lengths, seed=3, epoch=1, **sizes)
    total = 0
    for window in windows:
        shares = [
            deal_window(
                window,
                lengths,
                batch_size=batch_size,
                process=process,
                num_processes=num_processes,
            )
            for process in range(num_processes)
        ]
        rows = [list(chain.from_iterable(share)) for share in shares]
        assert sorted(chain.from_iterable(rows)) == sorted(chain.from_iterable(window))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        assert len({len(share) for share in shares}) == 1
        assert max(map(len, chain.from_iterable(shares))) <= batch_size
        total += len(shares[0])
    assert total == num_batches(len(lengths), num_processes=num_processes, **sizes)


def test_shares_of_a_window_have_about_as_many_tokens() -> None:
    for window in plan_epoch(LENGTHS, batch_size=8, accumulate_steps=8, seed=3, epoch=0):
        tokens = [
            sum(
                LENGTHS[row]
                for batch in deal_window(
                    window, LENGTHS, batch_size=8, process=process, num_processes=4
                )
                for row in batch
            )
            for process in range(4)
        ]
        assert max(tokens) - min(tokens) <= max(LENGTHS)


def test_one_process_takes_the_window_as_it_is() -> None:
    window = [[4, 1], [0, 2]]
    share = deal_window(window, [1, 2, 3, 4, 5], batch_size=2, process=0, num_processes=1)
    assert share == window
