"""Folders that appear, change and vanish as a whole."""

from __future__ import annotations

import threading
from pathlib import Path

from luthier.runtime import folders
from luthier.runtime.folders import HIDDEN_PREFIX, publish_folder, remove_folder


def make_folder(path: Path, content: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "config.yml").write_text(content)
    (path / "deep" / "weights").write_text(content)
    return path


def test_a_published_folder_is_at_its_final_place_only(tmp_path):
    publish_folder(make_folder(tmp_path / "staged", "new"), tmp_path / "models" / "m")
    assert (tmp_path / "models" / "m" / "deep" / "weights").read_text() == "new"
    assert not (tmp_path / "staged").exists()


def test_publishing_replaces_what_was_there_and_leaves_nothing_of_it(tmp_path):
    final = make_folder(tmp_path / "m", "old")
    (final / "only-old").write_text("")
    publish_folder(make_folder(tmp_path / "staged", "new"), final)
    assert (final / "config.yml").read_text() == "new"
    assert not (final / "only-old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_reader_never_misses_a_folder_that_is_being_replaced(tmp_path):
    final = make_folder(tmp_path / "m", "0")
    missed: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                (final / "config.yml").read_text()
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 30):
        publish_folder(make_folder(tmp_path / "staged", str(number)), final)
    done.set()
    reader.join()
    assert missed == []
    assert (final / "config.yml").read_text() == "29"


def test_replacing_works_where_two_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.sys, "platform", "darwin")
    final = make_folder(tmp_path / "m", "old")
    publish_folder(make_folder(tmp_path / "staged", "new"), final)
    assert (final / "config.yml").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_removed_folder_is_gone_and_hidden_meanwhile(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        folders.shutil, "rmtree", lambda path, ignore_errors: seen.append(path.name)
    )
    remove_folder(make_folder(tmp_path / "m", "x"))
    assert not (tmp_path / "m").exists()
    assert all(name.startswith(HIDDEN_PREFIX) for name in seen)
