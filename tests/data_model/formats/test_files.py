"""One file, a folder or a zip: the same rows."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from luthier.data_model.formats.files import read_file_rows, read_rows
from luthier.data_model.formats.opening import StreamLimits
from luthier.errors import InvalidInputError, NameNotAllowedError, TrainingDataError

ROWS = [{"input": "a", "output": "1"}, {"input": 'Zoë, "b"\nc', "output": "2"}]
NAMES = ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(ROWS), "utf-8")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    (folder / "rows.csv").write_text('input,output\na,1\n"Zoë, ""b""\nc",2\n', "utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder


def _values(path: Path, **limits: int) -> list[object]:
    return [row.value for row in read_rows(str(path), StreamLimits(**limits))]


@pytest.mark.parametrize("name", NAMES)
def test_each_format_gives_the_same_rows(folder: Path, name: str) -> None:
    assert _values(folder / name) == ROWS


def test_a_folder_gives_the_rows_of_its_files_by_name(folder: Path) -> None:
    assert _values(folder) == ROWS * 4
    places = [row.place.split()[0] for row in read_rows(str(folder))]
    assert list(dict.fromkeys(places)) == NAMES


def test_a_zip_gives_the_rows_of_its_files(folder: Path) -> None:
    path = folder.parent / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in NAMES:
            archive.write(folder / name, f"inner/{name}")
    assert _values(path) == ROWS * 4
    assert next(read_rows(str(path))).place == "all.zip/inner/rows.csv row 1 (line 2)"


def test_plain_text_is_one_column(folder: Path) -> None:
    (folder / "story.txt").write_text("Once\nupon a time\n", "utf-8")
    assert _values(folder / "story.txt") == [{"text": "Once\nupon a time\n"}]


def test_a_bad_row_in_a_zip_is_named_with_both_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.jsonl", "{}\n{oops\n")
    with pytest.raises(TrainingDataError, match=r"a\.zip/b\.jsonl line 2 is not JSON"):
        _values(tmp_path / "a.zip")


def test_a_folder_with_a_link_that_leaves_the_roots_is_refused(folder: Path) -> None:
    (folder.parent / "secret.jsonl").write_text("{}")
    (folder / "a.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(NameNotAllowedError):
        list(read_rows(".", StreamLimits(data_roots=(folder,))))


def test_what_nobody_reads_is_refused(folder: Path) -> None:
    for name, message in [("rows.xlsx", "extension 'xlsx'"), ("no.csv", "cannot read")]:
        with pytest.raises(InvalidInputError, match=message):
            _values(folder / name)
    with pytest.raises(InvalidInputError, match="extension ''"):
        list(read_file_rows(str(folder), StreamLimits()))


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_never_in_memory(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "large.jsonl"
    line = json.dumps({"input": "x" * 10_000, "output": "y"}) + "\n"
    path.write_text(line * 3000)
    if packed:
        with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "large.jsonl")
        path = tmp_path / "large.zip"
    tracemalloc.start()
    num_rows = sum(1 for _ in read_rows(str(path)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 3000
    assert peak_bytes < 6_000_000
