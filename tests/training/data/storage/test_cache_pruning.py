"""The tokenization cache stays below its limit, and what was used last stays in it."""

import os
from pathlib import Path

import pytest

from luthier.training.data.examples import Example, TokenizedRow
from luthier.training.data.storage.cache_pruning import prune_cache
from luthier.training.data.storage.stored_examples import read_stored, write_stored

KEYS = [digit * 64 for digit in "abcd"]
PARTIAL = f".{'e' * 64}-{'0' * 16}.partial"


def _fill(cache: Path) -> int:
    """Four entries of one size, used one after the other; the bytes of one."""
    for age, key in enumerate(KEYS):
        write_stored(cache / key, [TokenizedRow(Example(1, (5, 6), (6, 7)))])
        os.utime(cache / key / "manifest.json", (1000.0 + age, 1000.0 + age))
    return sum(file.stat().st_size for file in (cache / KEYS[0]).iterdir())


def _left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    size = _fill(tmp_path)
    assert prune_cache(tmp_path, max_bytes=4 * size, in_use=KEYS[3]) == []
    assert prune_cache(tmp_path, max_bytes=4 * size - 1, in_use=KEYS[3]) == KEYS[:1]
    assert prune_cache(tmp_path, max_bytes=size, in_use=KEYS[3]) == KEYS[1:3]
    assert _left(tmp_path) == KEYS[3:]


def test_reading_counts_as_use(tmp_path: Path) -> None:
    size = _fill(tmp_path)
    assert read_stored(tmp_path / KEYS[0]) is not None
    prune_cache(tmp_path, max_bytes=2 * size, in_use=KEYS[3])
    assert _left(tmp_path) == [KEYS[0], KEYS[3]]


def test_what_is_in_use_stays_even_if_it_is_oldest_and_too_large(tmp_path: Path) -> None:
    _fill(tmp_path)
    prune_cache(tmp_path, max_bytes=0, in_use=KEYS[0])
    assert _left(tmp_path) == KEYS[:1]


def test_a_training_that_reads_deleted_data_goes_on(tmp_path: Path) -> None:
    _fill(tmp_path)
    data = read_stored(tmp_path / KEYS[0])
    assert data is not None
    prune_cache(tmp_path, max_bytes=0, in_use=KEYS[1])
    assert not (tmp_path / KEYS[0]).exists()
    assert data.examples[0].input_ids == (5, 6)


@pytest.mark.parametrize(("age_hours", "is_left"), [(1, True), (48, False)])
def test_what_a_killed_writer_left_goes_after_a_day(
    tmp_path: Path, age_hours: int, is_left: bool
) -> None:
    file = tmp_path / PARTIAL / "tokens.i32"
    file.parent.mkdir()
    file.write_bytes(b"1234")
    then = file.stat().st_mtime - age_hours * 3600
    for path in (file, file.parent):
        os.utime(path, (then, then))
    prune_cache(tmp_path, max_bytes=10**6, in_use=KEYS[0])
    assert file.exists() == is_left


def test_other_files_and_folders_stay(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "large.txt").write_bytes(b"x" * 10_000)
    prune_cache(tmp_path, max_bytes=0, in_use=KEYS[3])
    assert _left(tmp_path) == [KEYS[3], "notes"]
