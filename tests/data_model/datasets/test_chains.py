"""Rows find their conversations; broken chains are refused by row."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.conversations import Turn
from luthier.data_model.datasets.chains import find_parents, group_turns, join_turns
from luthier.errors import TrainingDataError


def _turn(turn_id: str | None, parent_id: str | None = None) -> Turn:
    return Turn(f"q{turn_id}", f"a{turn_id}", "", turn_id, parent_id, f"f row {turn_id}")


# 1 - 2 - 3      5 - 6
#      \ 4
TREE = [_turn("3", "2"), _turn("1"), _turn("2", "1"), _turn("4", "2"), _turn("6", "5"), _turn("5")]


def _questions(*, limit: bool) -> list[list[str]]:
    records = join_turns(TREE, find_parents(TREE), limit_chained_samples=limit)
    return [[m.content for m in record.messages if m.role == "user"] for record in records]


def test_each_row_comes_with_its_ancestors() -> None:
    assert _questions(limit=False) == [
        ["q1", "q2", "q3"],
        ["q1"],
        ["q1", "q2"],
        ["q1", "q2", "q4"],
        ["q5", "q6"],
        ["q5"],
    ]


def test_limited_chains_are_whole_conversations() -> None:
    assert _questions(limit=True) == [["q1", "q2", "q3"], ["q1", "q2", "q4"], ["q5", "q6"]]


def test_rows_that_share_an_ancestor_are_one_group() -> None:
    assert group_turns(find_parents(TREE)) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([_turn("1"), _turn(None)], "f row None: the row has no id"),
        ([_turn("1"), _turn("1")], "f row 1: id '1' is f row 1's already"),
        ([_turn("1", "9")], "f row 1: no row has its parent '9'"),
        ([_turn("1", "1")], "f row 1: the row is its own ancestor"),
        ([_turn("0"), _turn("1", "2"), _turn("2", "3"), _turn("3", "1")], "own ancestor"),
    ],
)
def test_a_broken_chain_is_refused_by_row(turns: list[Turn], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        find_parents(turns)


@given(st.integers(min_value=1, max_value=40), st.integers())
def test_groups_are_the_connected_components(num_turns: int, seed: int) -> None:
    generator = random.Random(seed)
    parents = [
        str(generator.randrange(index)) if index and generator.random() < 0.6 else None
        for index in range(num_turns)
    ]
    turns = [_turn(str(index), parent) for index, parent in enumerate(parents)]
    generator.shuffle(turns)
    found = find_parents(turns)
    groups = group_turns(found)
    assert sorted(index for group in groups for index in group) == list(range(num_turns))
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    assert all(parent is None or group_of[i] == group_of[parent] for i, parent in enumerate(found))
    assert len(groups) == sum(parent is None for parent in found)


def test_a_long_chain_does_not_recurse() -> None:
    turns = [_turn(str(index), str(index + 1) if index < 4999 else None) for index in range(5000)]
    parents = find_parents(turns)
    assert len(group_turns(parents)) == 1
