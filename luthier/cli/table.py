"""Columns of text, as wide as they need to be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, left-aligned, two spaces between the columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_found(
    found: Sequence[Row],
    *,
    as_json: bool,
    empty: str,
    header: Sequence[str],
    cells: Callable[[Row], Sequence[str]],
) -> None:
    """Print what a server has.

    Args:
        found: Dataclasses.
        as_json: All of their fields as JSON instead of a table.
        empty: Said where there are none.
        header: Of the table.
        cells: Of one row.
    """
    if as_json:
        entries: Sequence[Any] = found
        print(json.dumps([dataclasses.asdict(each) for each in entries], indent=2))
    elif not found:
        print(empty)
    else:
        print_table(header, [cells(each) for each in found])
