"""Examples in files that are mapped into memory, so that there may be more than memory holds.

::

    <key>/
      tokens.i32     input ids of all examples, one after another
      labels.i32     likewise
      spans.i64      per example: row number, first and last place in tokens, likewise in labels
      manifest.json  sizes, hashes and the truncation report

All little-endian. A folder is whole or not there. Its manifest's time says when it was last used;
``cache_pruning`` goes by it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import alog
import numpy as np
import numpy.typing as npt

from luthier.errors import ArtifactError, ConflictError
from luthier.files.atomic_folder import (
    MANIFEST_NAME,
    check_manifest,
    write_folder_atomically,
    write_manifest,
)
from luthier.training.data.cut_counts import CutCounts
from luthier.training.data.examples import Example, TokenizedRow, TrainingData, TruncationReport

log = alog.use_channel(__name__)

_TOKENS, _LABELS, _SPANS = "tokens.i32", "labels.i32", "spans.i64"
_SPAN_NUMBERS = 5


class StoredExamples(Sequence[Example]):
    """The examples of one folder; each is read from the disk when it is asked for.

    Args:
        folder: Whole.

    Raises:
        ArtifactError: If the files do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self._tokens = _mapped(folder / _TOKENS, "<i4")
        self._labels = _mapped(folder / _LABELS, "<i4")
        spans = _mapped(folder / _SPANS, "<i8")
        if len(spans) == 0 or len(spans) % _SPAN_NUMBERS:
            raise ArtifactError(f"{folder.name!r} is damaged: {_SPANS} has {len(spans)} numbers")
        self._spans = spans.reshape(-1, _SPAN_NUMBERS)

    @property
    def lengths(self) -> list[int]:
        """Tokens and labels per example, [N]; reads no tokens."""
        spans = self._spans
        both = (spans[:, 2] - spans[:, 1]) + (spans[:, 4] - spans[:, 3])
        lengths: list[int] = both.tolist()
        return lengths

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row, start, end, first, last = self._spans[index].tolist()
        return Example(
            row,
            tuple(self._tokens[start:end].tolist()),
            tuple(self._labels[first:last].tolist()),
        )


def read_stored(folder: Path) -> TrainingData | None:
    """What an earlier training tokenized.

    Args:
        folder: Perhaps there.

    Returns:
        The data, or None if there is none or it is damaged; the damage is logged and removed.
    """
    if not folder.is_dir():
        return None
    try:
        facts = check_manifest(folder).get("truncation")
        if not isinstance(facts, dict):
            raise ArtifactError(f"{folder.name!r} has no manifest of tokenized data")
        data = TrainingData(StoredExamples(folder), _report_of(facts, folder))
        _mark_as_used(folder)
        return data
    except ArtifactError as error:
        log.warning("tokenized data is made anew: %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_stored(folder: Path, rows: Iterable[TokenizedRow]) -> TrainingData | None:
    """Write tokenized rows, one chunk in memory at a time, and map them.

    Args:
        folder: Appears when every row is on the disk. If somebody else writes it meanwhile, theirs
            stays, which says the same.
        rows: Read once.

    Returns:
        The data, or None for no rows; then nothing is written.
    """
    cuts = CutCounts()
    try:
        with write_folder_atomically(folder) as partial:
            write_rows(partial, rows, cuts)
            if not cuts.num_rows:
                raise _NoRowsError
            write_manifest(partial, truncation=dataclasses.asdict(cuts.report()))
    except _NoRowsError:
        return None
    except ConflictError:
        log.debug("somebody else tokenized %s meanwhile", folder.name)
    return TrainingData(StoredExamples(folder), cuts.report())


class _NoRowsError(Exception):
    """Ends the writing of a folder that would hold nothing."""


def write_rows(folder: Path, rows: Iterable[TokenizedRow], cuts: CutCounts) -> None:
    """Write the three files that ``StoredExamples`` reads, a row in memory at a time.

    Args:
        folder: Empty.
        rows: Read once.
        cuts: Counts what was cut.
    """
    num_tokens = num_labels = 0
    with (
        (folder / _TOKENS).open("wb") as tokens,
        (folder / _LABELS).open("wb") as labels,
        (folder / _SPANS).open("wb") as spans,
    ):
        for row in rows:
            example = row.example
            cuts.count(row)
            tokens.write(np.asarray(example.input_ids, dtype="<i4").tobytes())
            labels.write(np.asarray(example.labels, dtype="<i4").tobytes())
            token_end = num_tokens + len(example.input_ids)
            label_end = num_labels + len(example.labels)
            span = (example.row, num_tokens, token_end, num_labels, label_end)
            spans.write(np.asarray(span, dtype="<i8").tobytes())
            num_tokens, num_labels = token_end, label_end


def _mark_as_used(folder: Path) -> None:
    try:
        os.utime(folder / MANIFEST_NAME)
    except OSError as error:  # Deleted meanwhile, or another user's: what is mapped stays readable.
        log.debug("the use of %s was not noted: %s", folder.name, error)


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if not path.is_file():
        raise ArtifactError(f"{path.parent.name!r} is incomplete: {path.name!r} is missing")
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _report_of(facts: dict[str, Any], folder: Path) -> TruncationReport:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    try:
        return TruncationReport(**values)
    except TypeError as error:
        raise ArtifactError(f"{folder.name!r} has another truncation report") from error
