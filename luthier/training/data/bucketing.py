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


def plan_evaluation(lengths: Sequence[int], *, batch_size: int) -> list[Batch]:
    """Cut rows into batches that pad least; the order of rows does not matter for a mean."""
    return list(_cut(sorted(range(len(lengths)), key=lengths.__getitem__), batch_size))


def num_windows(num_rows: int, *, batch_size: int, accumulate_steps: int) -> int:
    """Updates per epoch."""
    return -(-num_rows // (batch_size * accumulate_steps))


def num_batches(num_rows: int, *, batch_size: int, accumulate_steps: int) -> int:
    """Batches per epoch: those of the whole windows, and of the short one."""
    whole, rest = divmod(num_rows, batch_size * accumulate_steps)
    return whole * accumulate_steps + -(-rest // batch_size)


def _block_rows(window_rows: int) -> int:
    """The smallest whole number of windows with at least ``_BLOCK_ROWS`` rows."""
    return window_rows * -(-_BLOCK_ROWS // window_rows)


def _sort_blocks(order: list[int], lengths: Sequence[int], *, block_rows: int) -> list[int]:
    return [
        row for block in _cut(order, block_rows) for row in sorted(block, key=lengths.__getitem__)
    ]


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
