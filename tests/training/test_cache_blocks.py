"""Blocks cover all rows once, whatever the rows' size."""

import pytest

from luthier.training.cache_blocks import blocks


@pytest.mark.parametrize("row_size", [1, 100, 2**16, 2**20])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 1000])
def test_every_row_is_in_one_block(num_rows: int, row_size: int) -> None:
    rows = list(range(num_rows))
    assert [row for part in blocks(num_rows, row_size) for row in rows[part]] == rows
