"""What the columns of a row mean: known shapes by their column names, or columns named by options.

=============== ============================================= ===============================
shape           columns                                       becomes
=============== ============================================= ===============================
messages        messages (OpenAI)                             ChatTrainRecord
sharegpt        conversations, of from and value              ChatTrainRecord
alpaca          instruction, output, perhaps input            GenerationTrainRecord, or Turn
pair            input/output, prompt/completion, ...          GenerationTrainRecord, or Turn
classification  text and label or labels                      GenerationTrainRecord
text            text                                          TextTrainRecord
=============== ============================================= ===============================

A pair whose columns include a system text or a parent becomes a ``Turn``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from luthier.data_model.conversations import (
    ChatTrainRecord,
    TextTrainRecord,
    Turn,
    chat_record,
)
from luthier.data_model.formats.row import Row, shown
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import TrainingDataError

DatasetRow: TypeAlias = GenerationTrainRecord | ChatTrainRecord | TextTrainRecord | Turn

_PAIRS = (
    ("input", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "answer"),
)


@dataclass(frozen=True)
class Shape:
    """Which columns make a record.

    Args:
        name: One of those in this file's table.
        prompt_columns: Joined with the separator; empty for conversations and plain text.
        answer_column: What shall be written; the messages or the text of those shapes.
        separator: Between prompt columns.
        system_column: System text, or None.
        id_column: Of chained rows, else None.
        parent_id_column: Of chained rows, else None.
        has_classes: Whether the answer is one class, not text: several labels are refused.
    """

    name: str
    prompt_columns: tuple[str, ...] = ()
    answer_column: str = ""
    separator: str = "\n\n"
    system_column: str | None = None
    id_column: str | None = None
    parent_id_column: str | None = None
    has_classes: bool = False

    @property
    def makes_turns(self) -> bool:
        """Whether rows become turns of conversations."""
        return self.system_column is not None or self.is_chained

    @property
    def is_chained(self) -> bool:
        """Whether rows name the row before them."""
        return self.parent_id_column is not None

    def read(self, row: Row) -> DatasetRow:
        """What a row says.

        Args:
            row: Of a file with this shape.

        Returns:
            A record.

        Raises:
            TrainingDataError: For a column that is missing, empty or of another type; names file,
                row and column.
        """
        cells = _cells(row)
        if self.name in ("messages", "sharegpt"):
            return self._conversation(cells, row.place)
        answer = self._answer(cells, row.place)
        if self.name == "text":
            return TextTrainRecord(answer, row.place)
        prompt = self._prompt(cells, row.place)
        if not self.makes_turns:
            return GenerationTrainRecord(input=prompt, output=answer)
        return Turn(
            prompt,
            answer,
            system=_text(cells, self.system_column, row.place) if self.system_column else "",
            turn_id=_identifier(cells, self.id_column, row.place),
            parent_id=_identifier(cells, self.parent_id_column, row.place),
            place=row.place,
        )

    def _conversation(self, cells: Mapping[str, object], place: str) -> ChatTrainRecord:
        messages = cells.get(self.answer_column)
        if messages is None:
            raise TrainingDataError(f"{place}: field '{self.answer_column}' is missing")
        system = cells.get("system")
        record = chat_record(messages, place)
        if isinstance(system, str) and system and record.messages[0].role != "system":
            return chat_record([{"role": "system", "content": system}, *messages], place)  # type: ignore[misc]
        return record

    def _answer(self, cells: Mapping[str, object], place: str) -> str:
        if self.name == "classification" and isinstance(cells.get(self.answer_column), list):
            labels = cells[self.answer_column]
            assert isinstance(labels, list)
            if self.has_classes and len(labels) > 1:
                raise TrainingDataError(
                    f"{place} has {len(labels)} labels; a classification gives each text one"
                )
            answer = ",".join(_scalar(label, self.answer_column, place) for label in labels)
        else:
            answer = _text(cells, self.answer_column, place)
        if not answer:
            raise TrainingDataError(f"{place}: field '{self.answer_column}' is missing or empty")
        return answer

    def _prompt(self, cells: Mapping[str, object], place: str) -> str:
        parts = [_text(cells, column, place) for column in self.prompt_columns]
        return self.separator.join(part for part in parts if part)


def shape_of(columns: Sequence[str], options: DatasetOptions, place: str) -> Shape:
    """The shape that options name, or the known one that these columns have.

    Args:
        columns: Of the first row.
        options: Column names; None where the shape is to be found.
        place: For messages.

    Returns:
        The shape.

    Raises:
        TrainingDataError: If a named column is not there, or no shape fits.
    """
    if options.prompt_column is not None:
        shape = _named_shape(options)
        named = (*shape.prompt_columns, shape.answer_column, shape.system_column)
        for column in (*named, shape.id_column, shape.parent_id_column):
            if column is not None and column not in columns:
                raise TrainingDataError(
                    f"{place}: column {shown(column)} is missing (columns: "
                    f"{shown(', '.join(columns))})"
                )
        return shape
    return _detected_shape(columns, options, place)


def _named_shape(options: DatasetOptions) -> Shape:
    assert options.prompt_column is not None
    assert options.answer_column is not None
    id_column = options.id_column or "id" if options.parent_id_column else None
    return Shape(
        "pair" if options.prompt_column else "text",
        prompt_columns=tuple(options.prompt_column),
        answer_column=options.answer_column,
        separator=options.prompt_column_separator,
        system_column=options.system_column,
        id_column=id_column,
        parent_id_column=options.parent_id_column,
    )


def _detected_shape(columns: Sequence[str], options: DatasetOptions, place: str) -> Shape:
    known = set(columns)
    if "messages" in known:
        return Shape("messages", answer_column="messages")
    for column in ("conversations", "conversation"):
        if column in known:
            return Shape("sharegpt", answer_column=column)
    if {"prompt", "chosen", "rejected"} <= known:
        raise TrainingDataError(
            f"{place}: rows with 'chosen' and 'rejected' are preferences; supervised tuning learns "
            "from one answer per row"
        )
    pair = _pair_of(known)
    if pair is not None:
        name, prompt_columns, answer_column = pair
        is_chained = {"id", "parent_id"} <= known
        return Shape(
            name,
            prompt_columns=prompt_columns,
            answer_column=answer_column,
            separator=options.prompt_column_separator,
            system_column="system" if "system" in known else None,
            id_column="id" if is_chained else None,
            parent_id_column="parent_id" if is_chained else None,
        )
    for label in ("labels", "label"):
        if {"text", label} <= known:
            return Shape("classification", ("text",), label)
    if "text" in known:
        return Shape("text", answer_column="text")
    raise TrainingDataError(
        f"{place}: no known shape has the columns {shown(', '.join(columns))}; name them with "
        "'prompt_column' and 'answer_column'"
    )


def shape_of_classes(shape: Shape, place: str) -> Shape:
    """The shape of rows that are classified.

    Args:
        shape: From ``shape_of``.
        place: Of the first row, for the message.

    Returns:
        The same, with one class per row.

    Raises:
        TrainingDataError: If rows have no class: conversations and plain text.
    """
    if shape.makes_turns or not shape.prompt_columns:
        raise TrainingDataError(
            f"{place}: a classification is learned from texts with a label; these rows are "
            f"{'conversations' if shape.name != 'text' else 'plain text'}"
        )
    return replace(shape, has_classes=True)


def _pair_of(known: set[str]) -> tuple[str, tuple[str, ...], str] | None:
    if {"instruction", "output"} <= known:
        columns = ("instruction", "input") if "input" in known else ("instruction",)
        return "alpaca", columns, "output"
    for prompt, answer in _PAIRS:
        if {prompt, answer} <= known:
            return "pair", (prompt,), answer
    return None


def _cells(row: Row) -> Mapping[str, object]:
    if not isinstance(row.value, Mapping):
        raise TrainingDataError(
            f"{row.place} must be an object with columns, got {type(row.value).__name__}"
        )
    return row.value


def columns_of(row: Row) -> list[str]:
    """The names of a row's columns.

    Args:
        row: The first of a file.

    Returns:
        Names.

    Raises:
        TrainingDataError: If the row has none.
    """
    return list(_cells(row))


def _text(cells: Mapping[str, object], column: str, place: str) -> str:
    """A cell as text; a cell without value is "", a column that is not there an error in JSON."""
    value = cells.get(column)
    if value is None:
        return ""
    return _scalar(value, column, place)


def _scalar(value: object, column: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise TrainingDataError(
        f"{place}: field '{column}' must be text or a number, got {shown(repr(value))}"
    )


def _identifier(cells: Mapping[str, object], column: str | None, place: str) -> str | None:
    """An id as text, the same whether a file has it as "7", 7 or 7.0; None where there is none."""
    value = None if column is None else cells.get(column)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    assert column is not None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _scalar(value, column, place)
