"""Rows that continue other rows: which belong together, and the conversations that they make."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data_model.conversations import ChatTrainRecord, Turn, conversation_of
from luthier.data_model.formats.row import shown
from luthier.errors import TrainingDataError


def find_parents(turns: Sequence[Turn]) -> list[int | None]:
    """The index of each turn's parent.

    Args:
        turns: All rows of a table.

    Returns:
        Index or None per turn, [N]. Following it always ends.

    Raises:
        TrainingDataError: For a row without id, an id used twice, a parent that no row has, or a
            row among its own ancestors; names the row.
    """
    index_of: dict[str, int] = {}
    for index, turn in enumerate(turns):
        if turn.turn_id is None:
            raise TrainingDataError(f"{turn.place}: the row has no id")
        if turn.turn_id in index_of:
            first = turns[index_of[turn.turn_id]].place
            raise TrainingDataError(f"{turn.place}: id {shown(turn.turn_id)} is {first}'s already")
        index_of[turn.turn_id] = index
    parents: list[int | None] = []
    for turn in turns:
        if turn.parent_id is not None and turn.parent_id not in index_of:
            raise TrainingDataError(f"{turn.place}: no row has its parent {shown(turn.parent_id)}")
        parents.append(None if turn.parent_id is None else index_of[turn.parent_id])
    _refuse_cycles(turns, parents)
    return parents


def group_turns(parents: Sequence[int | None]) -> list[list[int]]:
    """Rows that share an ancestor, which a split must not part.

    Args:
        parents: As ``find_parents`` gives them, [N].

    Returns:
        Groups of indices; every index in exactly one, in order of each group's first row.

    Example:
        >>> group_turns([None, None, 0, 2, 1])
        [[0, 2, 3], [1, 4]]
    """
    roots: list[int | None] = [None] * len(parents)
    groups: dict[int, list[int]] = {}
    for index in range(len(parents)):
        root, path = index, []
        while roots[root] is None and parents[root] is not None:
            path.append(root)
            root = parents[root]  # type: ignore[assignment]  # not None: the loop's condition
        found = roots[root]
        root = root if found is None else found
        for node in (*path, root):
            roots[node] = root
        groups.setdefault(root, []).append(index)
    return sorted(groups.values(), key=lambda group: group[0])


def join_turns(
    turns: Sequence[Turn], parents: Sequence[int | None], *, limit_chained_samples: bool
) -> list[ChatTrainRecord]:
    """One conversation per row, with all its ancestors before it.

    Args:
        turns: Rows.
        parents: As ``find_parents`` gives them, [N].
        limit_chained_samples: Keep only conversations that no row continues.

    Returns:
        Conversations, in the order of their last rows.
    """
    continued = {parent for parent in parents if parent is not None}
    records = []
    for index in range(len(turns)):
        if limit_chained_samples and index in continued:
            continue
        chain, node = [turns[index]], parents[index]
        while node is not None:
            chain.append(turns[node])
            node = parents[node]
        records.append(conversation_of(chain[::-1]))
    return records


def _refuse_cycles(turns: Sequence[Turn], parents: Sequence[int | None]) -> None:
    """O(N): a row whose end is known is not followed again."""
    is_known = [False] * len(parents)
    for index in range(len(parents)):
        path: list[int] = []
        on_path: set[int] = set()
        node: int | None = index
        while node is not None and not is_known[node]:
            if node in on_path:
                raise TrainingDataError(f"{turns[node].place}: the row is its own ancestor")
            path.append(node)
            on_path.add(node)
            node = parents[node]
        for seen in path:
            is_known[seen] = True
