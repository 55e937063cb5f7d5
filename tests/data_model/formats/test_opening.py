"""Only regular files below the roots are opened."""

import os
from pathlib import Path

import pytest

from luthier.data_model.formats.opening import (
    StreamLimits,
    allowed_path,
    extension_of,
    files_of,
    opened,
)
from luthier.errors import InvalidInputError, NameNotAllowedError


def test_a_path_is_confined_to_its_roots(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.csv").write_text("x")
    (tmp_path / "b.csv").write_text("x")
    (root / "link.csv").symlink_to(tmp_path / "b.csv")
    limits = StreamLimits(data_roots=(root,))
    assert allowed_path("a.csv", limits) == root / "a.csv"
    assert allowed_path(str(root / "a.csv"), limits) == root / "a.csv"
    for name in ("../b.csv", "link.csv", str(tmp_path / "b.csv"), "missing.csv", "", "a\0.csv"):
        with pytest.raises(NameNotAllowedError):
            allowed_path(name, limits)


def test_a_link_put_in_place_of_a_checked_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    path = allowed_path(str(tmp_path / "a.csv"), StreamLimits())
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInputError, match="cannot read"), opened(path):
        pass


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="not a regular file"), opened(tmp_path / "pipe"):
        pass


def test_files_of_a_folder_come_by_name_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    for name in ("b.csv", "a.CSV", ".hidden.csv", "c.xml"):
        (tmp_path / name).write_text("x")
    names = [path.name for path in files_of(tmp_path, ("csv",), StreamLimits())]
    assert names == ["a.CSV", "b.csv"]
    with pytest.raises(InvalidInputError, match="holds 2 files, at most 1"):
        files_of(tmp_path, ("csv",), StreamLimits(max_files=1))
    with pytest.raises(InvalidInputError, match=r"holds no \.json files"):
        files_of(tmp_path, ("json",), StreamLimits())


def test_an_extension_is_lower_case() -> None:
    assert [extension_of(name) for name in ("a.JSONL", "a", "a.tar.gz")] == ["jsonl", "", "gz"]
