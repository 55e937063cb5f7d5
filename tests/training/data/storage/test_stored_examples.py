"""Tokenized data on the disk is what was tokenized, or is made anew."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import ArtifactError, TrainingDataError
from luthier.training.data.examples import Example, TokenizedRow, TrainingData
from luthier.training.data.storage.stored_examples import StoredExamples, read_stored, write_stored

TOKENS = st.lists(st.integers(min_value=-100, max_value=2**31 - 1), max_size=6).map(tuple)
ROWS = [
    TokenizedRow(Example(1, (5, 6, 7), (-100, 6, 7)), 2, 0),
    TokenizedRow(Example(2, (), (8,)), 0, 1),
    TokenizedRow(Example(2, (2**31 - 1,), ()), 0, 0),
]


def _write(folder: Path, rows: list[TokenizedRow]) -> TrainingData:
    data = write_stored(folder, rows)
    assert data is not None
    return data


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Example, st.integers(1, 2**40), TOKENS, TOKENS), min_size=1, max_size=8))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    folder = tmp_path_factory.mktemp("cache") / "key"
    data = _write(folder, [TokenizedRow(example) for example in examples])
    assert list(data.examples) == examples
    assert data.lengths == [len(one.input_ids) + len(one.labels) for one in examples]


def test_the_next_reader_gets_the_same_rows_and_report(tmp_path: Path) -> None:
    written = _write(tmp_path / "key", ROWS)
    stored = read_stored(tmp_path / "key")
    assert stored is not None
    assert list(stored.examples) == [row.example for row in ROWS] == list(written.examples)
    assert stored.truncation == written.truncation
    assert stored.truncation.num_source_tokens == 2
    assert list(stored.examples[1:]) == [row.example for row in ROWS[1:]]
    with pytest.raises(IndexError):
        stored.examples[3]


def test_what_is_not_there_or_empty_is_nothing(tmp_path: Path) -> None:
    assert read_stored(tmp_path / "key") is None
    assert write_stored(tmp_path / "key", []) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokens.i32", "labels.i32", "spans.i64", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "change", "remove"])
def test_damage_is_noticed_and_removed(tmp_path: Path, name: str, harm: str) -> None:
    _write(tmp_path / "key", ROWS)
    path = tmp_path / "key" / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if harm == "cut" else b"\xff" + content[1:])
    assert read_stored(tmp_path / "key") is None
    assert not (tmp_path / "key").exists()


def test_an_error_while_rows_are_made_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[TokenizedRow]:
        yield ROWS[0]
        raise TrainingDataError("row 2")

    with pytest.raises(TrainingDataError, match="row 2"):
        write_stored(tmp_path / "key", rows())
    assert list(tmp_path.iterdir()) == []


def test_two_who_write_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    def rows() -> Iterator[TokenizedRow]:
        yield from ROWS
        _write(tmp_path / "key", ROWS)  # The other one is done first.

    data = write_stored(tmp_path / "key", rows())
    assert data is not None
    assert list(data.examples) == [row.example for row in ROWS]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        StoredExamples(tmp_path)


def test_large_data_is_not_held_in_memory(tmp_path: Path) -> None:
    ids = tuple(range(1000))
    tracemalloc.start()
    data = write_stored(tmp_path / "key", (TokenizedRow(Example(n, ids, ids)) for n in range(600)))
    assert data is not None
    total = sum(len(example.input_ids) for example in data.examples)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 600_000
    assert peak_bytes < 1_000_000
