"""Train records from wherever they come: inline data, files of the server, Python objects.

A record is a pair of texts or a conversation, and one source may mix them.

One function reads them all, so that every door refuses the same rows with the same words. An error
names the file, the row (counted from 1) and the column.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from luthier.data_model.conversations import (
    ChatMessage,
    ChatTrainRecord,
    chat_record,
    checked_chat,
)
from luthier.data_model.formats.files import DATA_EXTENSIONS, read_file_rows, unknown_extension
from luthier.data_model.formats.opening import (
    StreamLimits,
    allowed_path,
    extension_of,
    files_of,
)
from luthier.data_model.formats.row import shown
from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    TrainMessage,
    to_generation_record,
)
from luthier.errors import (
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
)

__all__ = ["StreamLimits", "StreamRecord", "read_train_records", "record_as_json"]

#: What one row of training data is.
StreamRecord: TypeAlias = GenerationTrainRecord | ClassificationTrainRecord | ChatTrainRecord
#: Columns that hold a conversation, as OpenAI and ShareGPT call them.
_CONVERSATION_COLUMNS = ("messages", "conversations")
#: Columns that hold the labels of a text, or its only one.
_LABEL_COLUMNS = frozenset({"labels", "label"})


def read_train_records(
    source: Any,
    limits: StreamLimits | None = None,
    *,
    name: str = "train_stream",
    keeps_labels: bool = False,
) -> list[StreamRecord]:
    """Read every record of a source.

    Args:
        source: caikit's ``DataStreamSource…`` of a request; a path; or an iterable (a caikit
            ``DataStream`` included) of train records or mappings with ``input`` and ``output``
            (or ``text`` and ``labels`` or ``label``, or ``messages``; other keys are left alone).
        limits: Which files and how many rows; no confinement if None.
        name: What messages call the source.
        keeps_labels: Whether a text with labels stays one, and a pair becomes one; otherwise it
            becomes a pair, its labels joined with commas.

    Returns:
        The records in their order; files of a directory in the order of their names.

    Raises:
        TrainingDataError: For an unreadable row, a missing field, or too many rows.
        InvalidInputError: If the source is none, or a file or directory cannot be read.
        NameNotAllowedError: If a file lies outside ``limits.data_roots``.
        NotSupportedError: For files on S3.
    """
    limits = limits or StreamLimits()
    records: list[StreamRecord] = []
    for record in _records(source, limits, name, keeps_labels):
        if len(records) >= limits.max_rows:
            raise TrainingDataError(
                f"'{name}' has more than {limits.max_rows} records, the most that are allowed"
            )
        records.append(_as_labelled(record) if keeps_labels else _as_pair(record))
    return records


def _as_pair(record: StreamRecord) -> StreamRecord:
    return record if isinstance(record, ChatTrainRecord) else to_generation_record(record)


def _as_labelled(record: StreamRecord) -> StreamRecord:
    if isinstance(record, GenerationTrainRecord):
        return ClassificationTrainRecord(text=record.input, labels=[record.output])
    return record


def record_as_json(record: StreamRecord) -> dict[str, Any]:
    """A record in JSON's words; ``read_train_records`` reads it back as the same.

    Args:
        record: A pair, a text with labels or a conversation.

    Returns:
        ``input`` and ``output``, ``text`` and ``labels``, or ``messages``.
    """
    if isinstance(record, ClassificationTrainRecord):
        return {"text": record.text, "labels": list(record.labels)}
    if not isinstance(record, ChatTrainRecord):
        return {"input": record.input, "output": record.output}
    chat = cast(ChatTrainRecord, record)  # caikit is untyped, so mypy cannot tell the two apart
    return {"messages": [_message_as_json(message) for message in chat.messages]}


def _message_as_json(message: ChatMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    return said if message.is_learned else said | {"weight": 0}


def _records(
    source: Any, limits: StreamLimits, name: str, keeps_labels: bool
) -> Iterator[StreamRecord]:
    if _is_wire_source(source):
        return _from_wire(source, limits, name, keeps_labels)
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source), limits, keeps_labels)
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


def _from_wire(
    source: Any, limits: StreamLimits, name: str, keeps_labels: bool
) -> Iterator[StreamRecord]:
    chosen = source.data_stream
    kind = type(chosen).__name__
    if chosen is None:
        return iter(())
    if kind == "JsonData":
        return _from_inline(chosen.data or (), place=name)
    if kind == "FileReference":
        return _from_file(chosen.filename or "", limits, keeps_labels)
    if kind == "ListOfFileReferences":
        return _from_files(chosen.files or (), limits, keeps_labels)
    if kind == "Directory":
        extension = chosen.extension or "json"
        return _from_directory(chosen.dirname or "", extension, limits, keeps_labels)
    raise NotSupportedError(
        f"'{name}' comes as {kind}, which is not offered; send the records inline "
        "or name a file of the server"
    )


def _from_inline(data: Iterable[Any], place: str) -> Iterator[StreamRecord]:
    """As ``_from_objects``, but an empty field counts as missing: protobuf sees no difference."""
    for row, record in enumerate(_from_objects(data, place), start=1):
        if isinstance(record, ChatTrainRecord):
            yield record
            continue
        is_labelled = isinstance(record, ClassificationTrainRecord)
        for column in ("text", "labels") if is_labelled else ("input", "output"):
            if not getattr(record, column):
                raise TrainingDataError(f"{place} row {row}: field '{column}' is missing or empty")
        yield record


# ---- files


def _from_files(
    names: Iterable[str], limits: StreamLimits, keeps_labels: bool
) -> Iterator[StreamRecord]:
    for name in names:
        yield from _from_file(name, limits, keeps_labels)


def _from_directory(
    name: str, extension: str, limits: StreamLimits, keeps_labels: bool
) -> Iterator[StreamRecord]:
    if extension not in DATA_EXTENSIONS:
        raise InvalidInputError(unknown_extension(extension))
    folder = allowed_path(name, limits)
    if not folder.is_dir():
        raise InvalidInputError(f"{shown(name)} is not a directory")
    names = [str(path) for path in files_of(folder, (extension,), limits)]
    return _from_files(names, limits, keeps_labels)


def _from_file(name: str, limits: StreamLimits, keeps_labels: bool) -> Iterator[StreamRecord]:
    # A header can say at once that a column is missing; rows of other files may be conversations,
    # and texts with labels have columns of two names.
    is_plain = extension_of(name) == "csv" and not keeps_labels
    required = ("input", "output") if is_plain else ()
    for row in read_file_rows(name, limits, required_columns=required):
        yield _from_object(row.value, row.place)


# ---- objects


def _from_objects(values: Iterable[Any], place: str) -> Iterator[StreamRecord]:
    for row, value in enumerate(values, start=1):
        yield _from_object(value, f"{place} row {row}")


def _from_object(value: Any, place: str) -> StreamRecord:
    if isinstance(value, ClassificationTrainRecord):
        _require_text(value.text, "text", place)
        _require_labels(value.labels, place)
        return value
    if isinstance(value, GenerationTrainRecord):
        if value.messages:
            return _from_messages(value, place)
        _require_text(value.input, "input", place)
        _require_text(value.output, "output", place)
        return value
    if isinstance(value, ChatTrainRecord):
        return checked_chat(value, place)
    if isinstance(value, Mapping):
        return _from_mapping(value, place)
    raise TrainingDataError(
        f"{place} must be an object with 'input' and 'output', or 'messages', "
        f"got {type(value).__name__}"
    )


def _from_messages(record: GenerationTrainRecord, place: str) -> ChatTrainRecord:
    if record.input or record.output:
        raise TrainingDataError(
            f"{place} has 'messages' beside 'input' or 'output'; give the one or the others"
        )
    return chat_record([_as_mapping(message) for message in record.messages or ()], place)


def _as_mapping(message: Any) -> Any:
    if not isinstance(message, TrainMessage):
        return message
    return {"role": message.role, "content": message.content, "weight": message.weight}


def _from_mapping(value: Mapping[str, Any], place: str) -> StreamRecord:
    if "text" in value and "input" not in value and not value.keys().isdisjoint(_LABEL_COLUMNS):
        # A cell of a table, or one label by itself, is text.
        given = value.get("labels", value.get("label"))
        labels = [given] if isinstance(given, str) and "labels" not in value else given
        return _from_object(ClassificationTrainRecord(text=value["text"], labels=labels), place)
    if "input" not in value and "output" not in value:
        for column in _CONVERSATION_COLUMNS:
            if column in value:
                return chat_record(value[column], place)
    return _from_object(
        GenerationTrainRecord(
            input=value.get("input"), output=value.get("output"), messages=value.get("messages")
        ),
        place,
    )


def _require_text(value: object, column: str, place: str) -> None:
    if value is None:
        raise TrainingDataError(f"{place}: field '{column}' is missing")
    if not isinstance(value, str):
        raise TrainingDataError(
            f"{place}: field '{column}' must be a string, got {shown(repr(value))}"
        )


def _require_labels(labels: object, place: str) -> None:
    if not isinstance(labels, Sequence) or isinstance(labels, str) or not labels:
        raise TrainingDataError(f"{place}: field 'labels' must be a list of one or more strings")
    for label in labels:
        _require_text(label, "labels", place)
