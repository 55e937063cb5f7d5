"""Train records from wherever they come: inline data, files of the server, Python objects.

One function reads them all, so that every door refuses the same rows with the same words. An error
names the file, the row (counted from 1) and the column.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    to_generation_record,
)
from luthier.errors import (
    InvalidInputError,
    NameNotAllowedError,
    NotSupportedError,
    TrainingDataError,
)

#: A JSON array must be read whole; larger data belongs into JSON lines or CSV.
MAX_JSON_ARRAY_BYTES = 1 << 30
MAX_PATH_CHARS = 4096
DEFAULT_MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class StreamLimits:
    """What a source of train records may read.

    Args:
        data_roots: Folders that files must lie in, symlinks resolved; None allows every file (a
            Python caller reads with its own rights anyway), an empty tuple none.
        max_rows: Most records of one source.
    """

    data_roots: tuple[Path, ...] | None = None
    max_rows: int = DEFAULT_MAX_ROWS


def read_train_records(
    source: Any, limits: StreamLimits | None = None, *, name: str = "train_stream"
) -> list[GenerationTrainRecord]:
    """Read every record of a source.

    Args:
        source: caikit's ``DataStreamSource…`` of a request; a path; or an iterable (a caikit
            ``DataStream`` included) of train records or mappings with ``input`` and ``output``
            (or ``text`` and ``labels``; other keys are left alone).
        limits: Which files and how many rows; no confinement if None.
        name: What messages call the source.

    Returns:
        The records in their order; files of a directory in the order of their names.

    Raises:
        TrainingDataError: For an unreadable row, a missing field, or too many rows.
        InvalidInputError: If the source is none, or a file or directory cannot be read.
        NameNotAllowedError: If a file lies outside ``limits.data_roots``.
        NotSupportedError: For files on S3.
    """
    limits = limits or StreamLimits()
    records: list[GenerationTrainRecord] = []
    for record in _records(source, limits, name):
        if len(records) >= limits.max_rows:
            raise TrainingDataError(
                f"'{name}' has more than {limits.max_rows} records, the most that are allowed"
            )
        records.append(record)
    return records


def _records(source: Any, limits: StreamLimits, name: str) -> Iterator[GenerationTrainRecord]:
    if _is_wire_source(source):
        return _from_wire(source, limits, name)
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source), limits)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InvalidInputError(
            f"'{name}' must be a list or stream of train records, or a file's path, "
            f"got {type(source).__name__}"
        )
    return _from_objects(source, place=name)


# ---- what a request sends


def _is_wire_source(source: object) -> bool:
    """True for caikit's generated DataStreamSource classes, which exist only at run time."""
    return hasattr(source, "data_stream") and type(source).__name__.startswith("DataStreamSource")


def _from_wire(source: Any, limits: StreamLimits, name: str) -> Iterator[GenerationTrainRecord]:
    chosen = source.data_stream
    kind = type(chosen).__name__
    if chosen is None:
        return iter(())
    if kind == "JsonData":
        return _from_inline(chosen.data or (), place=name)
    if kind == "FileReference":
        return _from_file(chosen.filename or "", limits)
    if kind == "ListOfFileReferences":
        return _from_files(chosen.files or (), limits)
    if kind == "Directory":
        return _from_directory(chosen.dirname or "", chosen.extension or "json", limits)
    raise NotSupportedError(
        f"'{name}' comes as {kind}, which is not offered; send the records inline "
        "or name a file of the server"
    )


def _from_inline(data: Iterable[Any], place: str) -> Iterator[GenerationTrainRecord]:
    """As ``_from_objects``, but an empty field counts as missing: protobuf sees no difference."""
    for row, record in enumerate(_from_objects(data, place), start=1):
        for column in ("input", "output"):
            if not getattr(record, column):
                raise TrainingDataError(f"{place} row {row}: field '{column}' is missing or empty")
        yield record


# ---- files


def _from_files(names: Iterable[str], limits: StreamLimits) -> Iterator[GenerationTrainRecord]:
    for name in names:
        yield from _from_file(name, limits)


def _from_directory(
    name: str, extension: str, limits: StreamLimits
) -> Iterator[GenerationTrainRecord]:
    if extension not in _READERS:
        raise InvalidInputError(_unknown_extension(extension))
    folder = _allowed_path(name, limits)
    if not folder.is_dir():
        raise InvalidInputError(f"{_shown(name)} is not a directory")
    files = sorted(path for path in folder.iterdir() if path.suffix == f".{extension}")
    if not files:
        raise InvalidInputError(f"directory {_shown(name)} holds no .{extension} files")
    return _from_files([str(path) for path in files], limits)


def _from_file(name: str, limits: StreamLimits) -> Iterator[GenerationTrainRecord]:
    extension = Path(name).suffix.removeprefix(".").lower()
    read = _READERS.get(extension)
    if read is None:
        raise InvalidInputError(f"{_shown(name)}: {_unknown_extension(extension)}")
    path = _allowed_path(name, limits)
    try:
        with _open_regular_file(path) as file:
            yield from read(file, path.name)
    except OSError as error:
        raise InvalidInputError(f"cannot read {_shown(name)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainingDataError(
            f"{path.name}: byte {error.object[error.start]:#04x} at position {error.start} of a "
            "block is not UTF-8"
        ) from error


def _allowed_path(name: str, limits: StreamLimits) -> Path:
    """The real path behind a name, symlinks resolved and confined to the roots."""
    if not name or "\0" in name or len(name) > MAX_PATH_CHARS:
        raise NameNotAllowedError(f"{_shown(name)} is not a file name")
    if limits.data_roots is None:
        return Path(name).expanduser().resolve()
    for root in limits.data_roots:
        real_root = root.resolve()
        path = (real_root / name).resolve()
        if path.is_relative_to(real_root) and path.exists():
            return path
    raise NameNotAllowedError(
        f"{_shown(name)} is in none of the folders that the server's 'data_roots' allow"
        if limits.data_roots
        else f"{_shown(name)} cannot be read: the server's 'data_roots' allows no files"
    )


def _open_regular_file(path: Path) -> TextIO:
    """Open what was checked and nothing else: no symlink put there since, no pipe that blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInputError(f"{_shown(path.name)} is not a regular file")
        if path.resolve() != path:
            raise NameNotAllowedError(f"{_shown(path.name)} was replaced while it was opened")
        return os.fdopen(descriptor, encoding="utf-8-sig", newline="")
    except BaseException:
        os.close(descriptor)
        raise


# ---- formats


def _from_json_lines(file: TextIO, place: str) -> Iterator[GenerationTrainRecord]:
    row = 0
    for line_number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        row += 1
        value = _parsed_json(line, f"{place} line {line_number}")
        yield _from_object(value, f"{place} row {row}")


def _from_json_array(file: TextIO, place: str) -> Iterator[GenerationTrainRecord]:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_JSON_ARRAY_BYTES:
        raise InvalidInputError(
            f"{place} has {size} bytes, a JSON array may have {MAX_JSON_ARRAY_BYTES}; "
            "use JSON lines (.jsonl)"
        )
    values = _parsed_json(file.read(), place)
    if not isinstance(values, list):
        raise TrainingDataError(f"{place} must hold a JSON array of records")
    return _from_objects(values, place)


def _parsed_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TrainingDataError(
            f"{place} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise TrainingDataError(f"{place} is nested too deeply") from error


def _from_csv(file: TextIO, place: str) -> Iterator[GenerationTrainRecord]:
    reader = csv.DictReader(file, strict=True)
    try:
        columns = _checked_header(reader.fieldnames, place)
        for row, cells in enumerate(reader, start=1):
            if None in cells:
                raise TrainingDataError(
                    f"{place} row {row} (line {reader.line_num}) has more cells than the "
                    f"{len(columns)} columns of the header"
                )
            yield _from_object(cells, f"{place} row {row} (line {reader.line_num})")
    except csv.Error as error:
        raise TrainingDataError(f"{place} line {reader.line_num}: {error}") from error


def _checked_header(columns: Sequence[str] | None, place: str) -> Sequence[str]:
    if not columns:
        raise TrainingDataError(f"{place} is empty; the first line must name the columns")
    for column in ("input", "output"):
        if column not in columns:
            raise TrainingDataError(
                f"{place}: column '{column}' is missing (columns: {_shown(', '.join(columns))})"
            )
    return columns


_READERS: dict[str, Callable[[TextIO, str], Iterator[GenerationTrainRecord]]] = {
    "csv": _from_csv,
    "json": _from_json_array,
    "jsonl": _from_json_lines,
}


def _unknown_extension(extension: str) -> str:
    return f"extension {_shown(extension)} is not one of {', '.join(sorted(_READERS))}"


# ---- objects


def _from_objects(values: Iterable[Any], place: str) -> Iterator[GenerationTrainRecord]:
    for row, value in enumerate(values, start=1):
        yield _from_object(value, f"{place} row {row}")


def _from_object(value: Any, place: str) -> GenerationTrainRecord:
    if isinstance(value, ClassificationTrainRecord):
        _require_text(value.text, "text", place)
        _require_labels(value.labels, place)
        return to_generation_record(value)
    if isinstance(value, GenerationTrainRecord):
        _require_text(value.input, "input", place)
        _require_text(value.output, "output", place)
        return value
    if isinstance(value, Mapping):
        return _from_object(_from_mapping(value), place)
    raise TrainingDataError(
        f"{place} must be an object with 'input' and 'output', got {type(value).__name__}"
    )


def _from_mapping(value: Mapping[str, Any]) -> GenerationTrainRecord | ClassificationTrainRecord:
    if "text" in value and "labels" in value and "input" not in value:
        return ClassificationTrainRecord(text=value["text"], labels=value["labels"])
    return GenerationTrainRecord(input=value.get("input"), output=value.get("output"))


def _require_text(value: object, column: str, place: str) -> None:
    if value is None:
        raise TrainingDataError(f"{place}: field '{column}' is missing")
    if not isinstance(value, str):
        raise TrainingDataError(
            f"{place}: field '{column}' must be a string, got {_shown(repr(value))}"
        )


def _require_labels(labels: object, place: str) -> None:
    if not isinstance(labels, Sequence) or isinstance(labels, str) or not labels:
        raise TrainingDataError(f"{place}: field 'labels' must be a list of one or more strings")
    for label in labels:
        _require_text(label, "labels", place)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
