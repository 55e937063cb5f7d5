"""Examples in memory and in a temporary file say the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.training.data.examples import Example, TokenizedRow
from luthier.training.data.storage.spilled_examples import keep_examples
from luthier.training.data.storage.stored_examples import StoredExamples

ROWS = [
    TokenizedRow(Example(number, tuple(range(number)), (-100,) * number), num_source_cut=number % 2)
    for number in range(1, 9)
]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("max_tokens", [0, 1, 20, 10**6])
def test_the_rows_are_the_same_wherever_they_are(max_tokens: int, temporary: Path) -> None:
    data = keep_examples(iter(ROWS), max_tokens=max_tokens)
    assert data is not None
    assert list(data.examples) == [row.example for row in ROWS]
    assert data.truncation.num_source_rows == 4
    assert data.lengths == [2 * number for number in range(1, 9)]
    assert isinstance(data.examples, StoredExamples) == (max_tokens < 72)


def test_the_file_has_no_name_that_could_be_left_behind(temporary: Path) -> None:
    assert keep_examples(ROWS, max_tokens=0) is not None
    assert list(temporary.iterdir()) == []


def test_an_error_leaves_nothing_behind(temporary: Path) -> None:
    def broken() -> Iterator[TokenizedRow]:
        yield from ROWS
        raise ValueError("row 9")

    with pytest.raises(ValueError, match="row 9"):
        keep_examples(broken(), max_tokens=3)
    assert list(temporary.iterdir()) == []


def test_no_rows_are_no_data() -> None:
    assert keep_examples((), max_tokens=0) is None
