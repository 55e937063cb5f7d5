"""Rows of a file, a folder of files or a zip of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from luthier.data_model.formats.opening import (
    StreamLimits,
    allowed_path,
    extension_of,
    files_of,
    opened,
)
from luthier.data_model.formats.parquet_rows import parquet_rows
from luthier.data_model.formats.row import Row, shown
from luthier.data_model.formats.text_rows import (
    csv_rows,
    json_array_rows,
    json_lines_rows,
    plain_text_rows,
)
from luthier.data_model.formats.zip_archive import ZipArchive
from luthier.errors import InvalidInputError

TABLE_EXTENSIONS = ("csv", "json", "jsonl", "parquet", "pq")
TEXT_EXTENSIONS = ("md", "txt")
DATA_EXTENSIONS = (*TABLE_EXTENSIONS, *TEXT_EXTENSIONS)
_SEEKING = ("parquet", "pq")


def read_rows(
    name: str, limits: StreamLimits | None = None, *, required_columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Every row of a file, of the files in a folder, or of the files in a zip.

    Files are read as a stream, never whole, JSON arrays apart. Of a folder the data files directly
    in it count, of a zip all; in the order of their names. Places in messages name the file.

    Args:
        name: Path; relative to one of ``limits.data_roots`` if those are given.
        limits: Which files and how much.
        required_columns: What the header of a CSV or parquet file must name.

    Yields:
        Rows.

    Raises:
        InvalidInputError: For an unknown extension, or a file that cannot be read or is too large.
        NameNotAllowedError: If a path or the name of a zip's member leaves its root.
        TrainingDataError: For a malformed file or row.
    """
    limits = limits or StreamLimits()
    path = allowed_path(name, limits)
    if path.is_dir():
        for file in files_of(path, DATA_EXTENSIONS, limits):
            yield from read_file_rows(str(file), limits, required_columns=required_columns)
    else:
        yield from read_file_rows(name, limits, required_columns=required_columns)


def read_file_rows(
    name: str, limits: StreamLimits, *, required_columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Every row of one file or zip; as ``read_rows``, but folders are refused.

    Args:
        name: Path of the file.
        limits: Which files and how much.
        required_columns: What the header of a CSV or parquet file must name.

    Yields:
        Rows.

    Raises:
        InvalidInputError: For an unknown extension, or a file that cannot be read or is too large.
    """
    extension = extension_of(name)
    if extension not in (*DATA_EXTENSIONS, "zip"):
        raise InvalidInputError(f"{shown(name)}: {unknown_extension(extension)}")
    path = allowed_path(name, limits)
    with opened(path) as file:
        if extension == "zip":
            yield from _zip_rows(file, path, limits, required_columns)
        else:
            yield from _rows(file, path.name, limits, required_columns)


def unknown_extension(extension: str) -> str:
    """The tail of a message about an extension that nobody reads."""
    known = ", ".join(sorted((*DATA_EXTENSIONS, "zip")))
    return f"extension {shown(extension)} is not one of {known}"


def _zip_rows(
    file: BinaryIO, path: Path, limits: StreamLimits, required_columns: Sequence[str]
) -> Iterator[Row]:
    archive = ZipArchive(file, path.name, DATA_EXTENSIONS, limits)
    for name in archive.names:
        with archive.opened(name, seekable=extension_of(name) in _SEEKING) as member:
            yield from _rows(member, f"{path.name}/{name}", limits, required_columns)


def _rows(
    file: BinaryIO, name: str, limits: StreamLimits, required_columns: Sequence[str]
) -> Iterator[Row]:
    extension = extension_of(name)
    if extension == "csv":
        return csv_rows(file, name, limits, required_columns=required_columns)
    if extension in _SEEKING:
        return parquet_rows(file, name, limits, required_columns=required_columns)
    return _READERS[extension](file, name, limits)


_READERS: dict[str, Callable[[BinaryIO, str, StreamLimits], Iterator[Row]]] = {
    "json": json_array_rows,
    "jsonl": json_lines_rows,
    "md": plain_text_rows,
    "txt": plain_text_rows,
}
