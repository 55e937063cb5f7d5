"""Micro-batches shared out to passes."""

from __future__ import annotations

from luthier.training.fusion.passes import share_out


def test_items_are_shared_out_evenly_and_within_the_limit() -> None:
    assert share_out([], 8) == []
    assert share_out([3, 3, 3], 100) == [[0, 1, 2]]
    assert share_out([6, 6, 6], 8) == [[0], [1], [2]]
    sizes = [7, 1, 5, 3, 3, 9, 2]
    groups = share_out(sizes, 10)
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert len(groups) == 3
    assert max(sum(sizes[index] for index in group) for group in groups) == 10
