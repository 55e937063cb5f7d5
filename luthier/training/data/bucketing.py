"""Which rows go through the model together: length-bucketed, random, repeatable.

An update learns from a *window* of batch_size x accumulate_steps rows; a window is cut into
batches of batch_size rows that go through the model one after another. Windows are made first and
depend on the product alone, so k batches of b rows and one batch of k·b rows learn from the same
rows in the same order of updates::

    rows in random order   | block of >= 256 rows      | block ...
    each block by length   | w0 | w1 | w2 | w3 | ...   |
    windows in random order, each by length and cut:   w2 = [batch, batch, ...]
"""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Rows that are sorted together. More pads less, and mixes rows less from epoch to epoch.
_BLOCK_ROWS = 256

#: Row indices of one batch.
Batch = list[int]
#: Batches of one update.
Window = list[Batch]


def plan_epoch(
    lengths: Sequence[int],
    *,
    batch_size: int,
    accumulate_steps: int,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
) -> list[Window]:
    """Cut one pass over the data into updates and batches; a pure function of its arguments.

    Args:
        lengths: Tokens per row, [N].
        batch_size: Rows per batch.
        accumulate_steps: Batches per update.
        seed: Of the training.
        epoch: Number of the pass, from 0; each has its own order.
        group_by_length: False takes rows in random order.

    Returns:
        Windows of batches. Every index in ``range(N)`` appears once; the smallest window may be
        short, because an epoch's last rows are never dropped or carried over.

    Example:
        >>> plan_epoch([5, 1, 4, 2], batch_size=2, accumulate_steps=1, seed=0, epoch=0)
        [[[1, 3]], [[2, 0]]]
    """
    generator = random.Random(f"order of rows, seed {seed}, epoch {epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    window_rows = batch_size * accumulate_steps
    if group_by_length:
        order = _sort_blocks(order, lengths, block_rows=_block_rows(window_rows))
    windows = list(_cut(order, window_rows))
    if group_by_length:
        generator.shuffle(windows)
        windows = [sorted(window, key=lengths.__getitem__) for window in windows]
    return [list(_cut(window, batch_size)) for window in windows]


def deal_window(
    window: Window, lengths: Sequence[int], *, batch_size: int, process: int, num_processes: int
) -> Window:
    """What one of several processes takes of an update's rows.

    Rows are dealt from the longest to the shortest, forth and back, so that everybody has the same
    number of rows, give or take one, and about as many tokens::

        lengths 9 8 7 6 5 4 3 2 1, two processes:   9     6 5     2 1
                                                      8 7     4 3

    Args:
        window: Of all processes.
        lengths: Tokens per row of the data, [N].
        batch_size: Rows per batch.
        process: Which one, from 0.
        num_processes: In all. With one of them, the window is what comes out.

    Returns:
        As many batches in every process; the last ones may be empty.

    Example:
        >>> deal_window([[0, 1], [2]], [5, 6, 7], batch_size=2, process=0, num_processes=2)
        [[2]]
        >>> deal_window([[0, 1], [2]], [5, 6, 7], batch_size=2, process=1, num_processes=2)
        [[0, 1]]
    """
    if num_processes == 1:
        return window
    rows = [row for batch in window for row in batch]
    by_length = sorted(rows, key=lengths.__getitem__, reverse=True)
    turns = [*range(num_processes), *reversed(range(num_processes))]
    own = {row for index, row in enumerate(by_length) if turns[index % len(turns)] == process}
    batches = _cut([row for row in rows if row in own], batch_size)
    most_rows = -(-len(rows) // num_processes)
    return batches + [[]] * (-(-most_rows // batch_size) - len(batches))


def plan_evaluation(lengths: Sequence[int], *, batch_size: int) -> list[Batch]:
    """Cut rows into batches that pad least; the order of rows does not matter for a mean."""
    return list(_cut(sorted(range(len(lengths)), key=lengths.__getitem__), batch_size))


def num_windows(num_rows: int, *, batch_size: int, accumulate_steps: int) -> int:
    """Updates per epoch."""
    return -(-num_rows // (batch_size * accumulate_steps))


def num_batches(
    num_rows: int, *, batch_size: int, accumulate_steps: int, num_processes: int = 1
) -> int:
    """Batches per epoch and process: those of the whole windows, and of the short one."""
    window_rows = batch_size * accumulate_steps
    whole, rest = divmod(num_rows, window_rows)
    per_window, in_rest = (-(-rows // num_processes) for rows in (window_rows, rest))
    return whole * -(-per_window // batch_size) + -(-in_rest // batch_size)


def _block_rows(window_rows: int) -> int:
    """The smallest whole number of windows with at least ``_BLOCK_ROWS`` rows."""
    return window_rows * -(-_BLOCK_ROWS // window_rows)


def _sort_blocks(order: list[int], lengths: Sequence[int], *, block_rows: int) -> list[int]:
    return [
        row for block in _cut(order, block_rows) for row in sorted(block, key=lengths.__getitem__)
    ]


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
