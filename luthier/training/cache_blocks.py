"""Rows in blocks that stay in a core's cache while several operations go over them."""

from __future__ import annotations

from collections.abc import Iterator

#: Numbers of one block; a few blocks of fp32 together fit into 1 MiB.
_BLOCK_NUMBERS = 2**16


def blocks(num_rows: int, row_size: int, *, numbers: int = _BLOCK_NUMBERS) -> Iterator[slice]:
    """Cut rows into blocks.

    Args:
        num_rows: How many there are.
        row_size: Numbers of one.
        numbers: Of one block, at most; a block has one row at least.

    Yields:
        Slices of rows, in order.

    Example:
        >>> list(blocks(5, 2**15))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    size = max(1, numbers // max(1, row_size))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
