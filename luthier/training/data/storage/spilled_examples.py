"""Examples that stay in memory while they are few, and go to a file when they are many."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import alog

from luthier.training.data.cut_counts import CutCounts
from luthier.training.data.examples import TokenizedRow, TrainingData
from luthier.training.data.storage.stored_examples import StoredExamples, write_rows

log = alog.use_channel(__name__)


def keep_examples(rows: Iterable[TokenizedRow], *, max_tokens: int) -> TrainingData | None:
    """Keep tokenized rows for one training.

    What is too much for memory is written to a file in the system's temporary folder (``TMPDIR``)
    and mapped. The file has no name any more when this returns: its space is free again as soon as
    nobody uses the data, however the process ends.

    Args:
        rows: Read once.
        max_tokens: Of inputs and labels that are kept in memory.

    Returns:
        The data, or None for no rows.
    """
    cuts = CutCounts()
    kept: list[TokenizedRow] = []
    num_tokens = 0
    remaining = iter(rows)
    for row in remaining:
        kept.append(row)
        num_tokens += len(row.example.input_ids) + len(row.example.labels)
        if num_tokens > max_tokens:
            return _spilled(itertools.chain(_handed_over(kept), remaining), cuts)
    for row in kept:
        cuts.count(row)
    return TrainingData(tuple(row.example for row in kept), cuts.report()) if kept else None


def _handed_over(rows: list[TokenizedRow]) -> Iterable[TokenizedRow]:
    """The rows, each forgotten when the next is asked for."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _spilled(rows: Iterable[TokenizedRow], cuts: CutCounts) -> TrainingData:
    with tempfile.TemporaryDirectory(prefix="luthier-tokens-") as name:
        folder = Path(name)
        write_rows(folder, rows, cuts)
        examples = StoredExamples(folder)  # What is mapped outlives its name.
    log.info("tokenized data is kept in a temporary file: rows=%d", len(examples))
    return TrainingData(examples, cuts.report())
