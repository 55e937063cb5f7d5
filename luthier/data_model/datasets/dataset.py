"""From files to records to train on and records to validate with; the same for the same seed.

Rows that stand alone are read as a stream each time somebody iterates: a first pass checks and
counts them, and only a byte per row stays in memory. Chained rows are held whole, because a row may
continue any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import alog

from luthier.data_model.conversations import (
    ChatTrainRecord,
    TextTrainRecord,
    Turn,
    conversation_of,
)
from luthier.data_model.datasets.chains import find_parents, group_turns, join_turns
from luthier.data_model.datasets.renaming import NewNames
from luthier.data_model.datasets.shapes import (
    DatasetRow,
    Shape,
    columns_of,
    shape_of,
    shape_of_classes,
)
from luthier.data_model.datasets.splitting import Units, hold_out, sample
from luthier.data_model.formats.files import read_rows
from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError, TrainingDataError

log = alog.use_channel(__name__)

DatasetRecord: TypeAlias = GenerationTrainRecord | ChatTrainRecord | TextTrainRecord


@dataclass(frozen=True)
class Dataset:
    """Records of one training. Both parts can be iterated again and again.

    Args:
        train: To learn from; at least one.
        validation: Held out; empty for none.
        shape: What the columns were taken to mean.
    """

    train: Iterable[DatasetRecord]
    validation: Iterable[DatasetRecord]
    shape: Shape


def load_dataset(
    options: DatasetOptions, limits: StreamLimits | None = None, *, has_classes: bool = False
) -> Dataset:
    """Read, check, split and sample a data set.

    Args:
        options: Files, columns, split and sample; validated here.
        limits: Which files and how much; no confinement if None.
        has_classes: Whether rows are texts with a class each, for a classification.

    Returns:
        The data set.

    Raises:
        InvalidInputError: For options that cannot be meant, or a file that cannot be read.
        NameNotAllowedError: If a file lies outside ``limits.data_roots``.
        TrainingDataError: For a bad row, with file, row and column; for no rows, or too few to
            hold any out.
    """
    options.validate()
    limits = limits or StreamLimits()
    if not options.train_dataframe:
        raise InvalidInputError("'train_dataframe' names no file")
    train = _Table.open(options.train_dataframe, options, limits, has_classes=has_classes)
    if options.validation_strategy == "custom":
        held_out = _Table.open(
            options.validation_dataframe,
            options,
            limits,
            is_validation=True,
            has_classes=has_classes,
        )
        train_units, validation_units = train.units, held_out.units
    else:
        held_out = train
        train_units, validation_units = hold_out(train.units, options, name=train.name)
    learned = train.records(sample(train_units, "Train", options), options)
    measured = held_out.records(sample(validation_units, "Validation", options), options)
    if options.train_validation_data:
        learned = _Joined(learned, measured)
    return Dataset(learned, measured, train.shape)


@dataclass(frozen=True)
class _Table:
    """One file, folder or zip, read once."""

    name: str
    shape: Shape
    limits: StreamLimits
    names: NewNames | None
    num_rows: int
    turns: Sequence[Turn] = ()
    parents: Sequence[int | None] = ()

    @classmethod
    def open(
        cls,
        name: str,
        options: DatasetOptions,
        limits: StreamLimits,
        *,
        is_validation: bool = False,
        has_classes: bool = False,
    ) -> _Table:
        first = next(iter(read_rows(name, limits)), None)
        if first is None:
            raise TrainingDataError(f"{name!r} holds no rows")
        columns = columns_of(first)
        if is_validation:
            options = _without_absent_columns(options, columns)
        shape = shape_of(columns, options, first.place)
        while (wider := _wider_shape(name, shape, columns, options, limits)) is not None:
            shape, columns = wider
        if has_classes:
            shape = shape_of_classes(shape, first.place)
        names = None
        if options.personalize:
            names = NewNames(options.chatbot_name, options.chatbot_author)
        num_rows, turns = 0, []
        for record in _read(name, shape, limits, names):
            num_rows += 1
            if shape.is_chained:
                assert isinstance(record, Turn)
                turns.append(record)
        parents = find_parents(turns) if shape.is_chained else ()
        return cls(name, shape, limits, names, num_rows, turns, parents)

    @property
    def units(self) -> Units:
        return group_turns(self.parents) if self.shape.is_chained else range(self.num_rows)

    def records(self, units: Units, options: DatasetOptions) -> Iterable[DatasetRecord]:
        if not self.shape.is_chained:
            marks = bytearray(self.num_rows)
            for unit in units:
                assert isinstance(unit, int)
                marks[unit] = 1
            return _RowView(self, bytes(marks), len(units))
        chosen = sorted(row for unit in units if isinstance(unit, list) for row in unit)
        new_index = {row: index for index, row in enumerate(chosen)}
        turns = [self.turns[row] for row in chosen]
        # Units are whole components, so a chosen row's parent is chosen.
        parents = [
            None if (parent := self.parents[row]) is None else new_index[parent] for row in chosen
        ]
        return join_turns(turns, parents, limit_chained_samples=options.limit_chained_samples)


@dataclass(frozen=True)
class _Joined:
    """Records after records, read anew by each iteration."""

    first: Iterable[DatasetRecord]
    second: Iterable[DatasetRecord]

    def __iter__(self) -> Iterator[DatasetRecord]:
        yield from self.first
        yield from self.second


@dataclass(frozen=True)
class _RowView:
    """Some rows of a file, read anew by each iteration.

    Args:
        table: All of the file's rows.
        marks: A byte for each of them, 1 for those that are meant: a file may have many.
        num_rows: How many those are.
    """

    table: _Table
    marks: bytes
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[DatasetRecord]:
        if not self.num_rows:
            return
        table = self.table
        row = -1
        for row, record in enumerate(_read(table.name, table.shape, table.limits, table.names)):
            if row == table.num_rows:
                raise _changed(table)
            if self.marks[row]:
                yield conversation_of([record]) if isinstance(record, Turn) else record
        if row + 1 < table.num_rows:
            raise _changed(table)


def _changed(table: _Table) -> TrainingDataError:
    return TrainingDataError(
        f"{table.name!r} had {table.num_rows} rows when it was first read, and has others now; do "
        "not change a file that is learned from"
    )


def _read(
    name: str, shape: Shape, limits: StreamLimits, names: NewNames | None
) -> Iterator[DatasetRow]:
    for number, row in enumerate(read_rows(name, limits), start=1):
        if number > limits.max_rows:
            raise TrainingDataError(
                f"{name!r} has more than {limits.max_rows} rows, the most that are allowed"
            )
        record = shape.read(row)
        yield record if names is None else names.in_row(record)


def _wider_shape(
    name: str, shape: Shape, columns: Sequence[str], options: DatasetOptions, limits: StreamLimits
) -> tuple[Shape, list[str]] | None:
    """The shape with columns that only later rows have, if they mean something; else None.

    In JSON each row has columns of its own. What the first row lacks shall not be lost in others.
    """
    if options.prompt_column is not None:
        return None
    known = dict.fromkeys(columns)
    for row in read_rows(name, limits):
        fresh = [column for column in columns_of(row) if column not in known]
        if fresh:
            known.update(dict.fromkeys(fresh))
            wider = shape_of(list(known), options, row.place)
            if wider != shape:
                return wider, list(known)
    return None


def _without_absent_columns(options: DatasetOptions, columns: Sequence[str]) -> DatasetOptions:
    """Held-out rows may lack system texts and parents: then they are single turns."""
    absent = [
        name
        for name in ("system_column", "parent_id_column")
        if (column := getattr(options, name)) is not None and column not in columns
    ]
    if absent:
        log.warning("the validation data has no columns for %s", ", ".join(absent))
    changes = dict.fromkeys(absent)
    if "parent_id_column" in changes:
        changes["id_column"] = None
    return dataclasses.replace(options, **changes)  # type: ignore[arg-type]  # all are optional
