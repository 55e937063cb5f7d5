"""Rows of the formats that are text: JSON lines, a JSON array, CSV, plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.formats.row import Row, shown
from luthier.errors import InvalidInputError, TrainingDataError

#: Characters of a plain text that make one row, ended at the next end of a line.
TEXT_BLOCK_CHARS = 1 << 20


def json_lines_rows(file: BinaryIO, name: str, limits: StreamLimits) -> Iterator[Row]:
    """One JSON value per line; blank lines do not count.

    Args:
        file: UTF-8; read line by line.
        name: What messages call the file.
        limits: ``max_row_chars`` counts.

    Yields:
        Rows.

    Raises:
        TrainingDataError: For a line that is too long, no UTF-8 or no JSON; names it.
    """
    row = 0
    for line_number, line in enumerate(_lines(file, name, limits), start=1):
        if line.strip():
            row += 1
            yield Row(f"{name} row {row}", _parsed_json(line, f"{name} line {line_number}"))


def json_array_rows(file: BinaryIO, name: str, limits: StreamLimits) -> Iterator[Row]:
    """The items of one JSON array, which is held in memory.

    Args:
        file: UTF-8.
        name: What messages call the file.
        limits: ``max_json_bytes`` counts.

    Yields:
        Rows.

    Raises:
        InvalidInputError: If the file is too large for memory.
        TrainingDataError: If it is no UTF-8, no JSON or no array.
    """
    content = file.read(limits.max_json_bytes + 1)
    if len(content) > limits.max_json_bytes:
        raise InvalidInputError(
            f"{name} has more than {limits.max_json_bytes} bytes, the most that a JSON array may "
            "have; use JSON lines (.jsonl)"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from error
    values = _parsed_json(text, name)
    if not isinstance(values, list):
        raise TrainingDataError(f"{name} must hold a JSON array of records")
    for row, value in enumerate(values, start=1):
        yield Row(f"{name} row {row}", value)


def csv_rows(
    file: BinaryIO, name: str, limits: StreamLimits, *, required_columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of a CSV whose first line names the columns. Cells are text; absent ones are None.

    Args:
        file: UTF-8; read line by line.
        name: What messages call the file.
        limits: ``max_row_chars`` counts for a cell.
        required_columns: Must be in the header.

    Yields:
        Rows.

    Raises:
        TrainingDataError: For a missing or ambiguous header, or a malformed line; names it.
    """
    # The csv module knows one limit for the whole process; it may only grow.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_row_chars))
    reader = csv.DictReader(_lines(file, name, limits), strict=True)
    try:
        columns = _checked_header(reader.fieldnames, name, required_columns)
        for row, cells in enumerate(reader, start=1):
            place = f"{name} row {row} (line {reader.line_num})"
            if None in cells:
                raise TrainingDataError(
                    f"{place} has more cells than the {len(columns)} columns of the header"
                )
            yield Row(place, cells)
    except csv.Error as error:
        line_number = reader.reader.line_num  # DictReader's own stays behind on errors.
        raise TrainingDataError(f"{name} line {line_number}: {error}") from error


def plain_text_rows(file: BinaryIO, name: str, limits: StreamLimits) -> Iterator[Row]:
    """Plain text as rows with one column, ``text``: whole lines, about a million characters each.

    Args:
        file: UTF-8; read line by line.
        name: What messages call the file.
        limits: ``max_row_chars`` counts for a line.

    Yields:
        Rows that joined give the file's text; none for a file of blanks.

    Raises:
        TrainingDataError: For a line that is too long or no UTF-8.
    """
    block: list[str] = []
    num_chars, row = 0, 0
    for line in _lines(file, name, limits):
        block.append(line)
        num_chars += len(line)
        if num_chars >= TEXT_BLOCK_CHARS:
            row += 1
            yield Row(f"{name} row {row}", {"text": "".join(block)})
            block, num_chars = [], 0
    if "".join(block).strip():
        yield Row(f"{name} row {row + 1}", {"text": "".join(block)})


def _lines(file: BinaryIO, name: str, limits: StreamLimits) -> Iterator[str]:
    """Lines with their ends, none longer than the limit."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    number = 0
    try:
        while line := text.readline(limits.max_row_chars + 1):
            number += 1
            if len(line) > limits.max_row_chars:
                raise TrainingDataError(
                    f"{name} line {number} is longer than {limits.max_row_chars} characters, "
                    "the most that are allowed"
                )
            yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from error
    finally:
        if not text.closed:
            text.detach()  # Else it would close a file that is not ours.


def _not_utf8(name: str, error: UnicodeDecodeError) -> TrainingDataError:
    return TrainingDataError(
        f"{name}: byte {error.object[error.start]:#04x} at position {error.start} of a block is "
        "not UTF-8"
    )


def _parsed_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TrainingDataError(
            f"{place} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise TrainingDataError(f"{place} is nested too deeply") from error
    except ValueError as error:  # A number of more digits than Python turns into an int.
        raise TrainingDataError(f"{place} is not JSON: {shown(str(error))}") from error


def _checked_header(
    columns: Sequence[str] | None, name: str, required: Sequence[str]
) -> Sequence[str]:
    if not columns:
        raise TrainingDataError(f"{name} is empty; the first line must name the columns")
    for column in columns:
        if columns.count(column) > 1:
            raise TrainingDataError(f"{name}: column {shown(column)} is in the header twice")
    require_columns(columns, name, required)
    return columns


def require_columns(columns: Sequence[str], name: str, required: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Args:
        columns: What it has.
        name: What messages call it.
        required: What it needs.

    Raises:
        TrainingDataError: Naming the first column that is missing, and those that are there.
    """
    for column in required:
        if column not in columns:
            raise TrainingDataError(
                f"{name}: column '{column}' is missing (columns: {shown(', '.join(columns))})"
            )
