import json
import os

import pytest

from luthier.errors import ArtifactError, ConflictError
from luthier.files.atomic_folder import (
    check_manifest,
    write_file_atomically,
    write_folder_atomically,
    write_manifest,
)


def test_the_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with write_folder_atomically(target) as partial:
        (partial / "a.txt").write_text("a")
        (partial / "sub").mkdir()
        (partial / "sub" / "b.txt").write_text("b")
        assert not target.exists()
    assert (target / "sub" / "b.txt").read_text() == "b"
    assert os.listdir(target.parent) == ["model"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"):  # noqa: SIM117
        with write_folder_atomically(tmp_path / "model") as partial:
            (partial / "a.txt").write_text("a")
            raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_stays_unless_overwriting(tmp_path):
    target = tmp_path / "model"
    with write_folder_atomically(target) as partial:
        (partial / "a.txt").write_text("old")
        write_manifest(partial)
    with pytest.raises(ConflictError, match="already exists"):  # noqa: SIM117
        with write_folder_atomically(target):
            pass
    assert (target / "a.txt").read_text() == "old"
    with write_folder_atomically(target, overwrite=True) as partial:
        (partial / "b.txt").write_text("new")
    assert os.listdir(target) == ["b.txt"]
    assert os.listdir(tmp_path) == ["model"]


def test_overwriting_never_takes_what_is_no_saved_model(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yml").write_text("years: of work")
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    for target in (project, file):
        with pytest.raises(ConflictError, match="neither an empty folder nor a saved model"):  # noqa: SIM117
            with write_folder_atomically(target, overwrite=True):
                pass
    assert (project / "config.yml").read_text() == "years: of work"
    assert file.read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["project", "thesis.txt"]


@pytest.mark.parametrize("marker", [None, "manifest.json", "adapter_config.json", "config.yml"])
def test_overwriting_replaces_empty_folders_and_models_of_all_makers(tmp_path, marker):
    target = tmp_path / "model"
    target.mkdir()
    if marker is not None:
        (target / marker).write_text("module_id: 6655831b")
    with write_folder_atomically(target, overwrite=True) as partial:
        (partial / "b.txt").write_text("new")
    assert os.listdir(target) == ["b.txt"]


def test_of_two_writers_one_wins_and_the_other_is_told(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(ConflictError):  # noqa: SIM117
        with write_folder_atomically(target) as slow:
            (slow / "who").write_text("slow")
            with write_folder_atomically(target) as fast:
                (fast / "who").write_text("fast")
    assert (target / "who").read_text() == "fast"
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    target = tmp_path / "state.json"
    write_file_atomically(target, b"one")
    write_file_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"12345")
    write_manifest(tmp_path, facts={"x": 1})
    return tmp_path


def test_a_manifest_fits_what_it_was_made_of(folder):
    assert check_manifest(folder)["facts"] == {"x": 1}


@pytest.mark.parametrize("damage", [b"12346", b"1234", b""])
def test_a_changed_or_shortened_file_is_noticed(folder, damage):
    (folder / "weights").write_bytes(damage)
    with pytest.raises(ArtifactError, match="'weights' differs"):
        check_manifest(folder)


def test_a_missing_file_is_noticed(folder):
    (folder / "weights").unlink()
    with pytest.raises(ArtifactError, match="'weights' is missing"):
        check_manifest(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', "[" * 10**5]
)
def test_a_damaged_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="manifest"):
        check_manifest(folder)


def test_a_manifest_cannot_make_us_read_elsewhere(folder):
    entry = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps({"files": {"../../etc/passwd": entry}}))
    with pytest.raises(ArtifactError, match="missing"):
        check_manifest(folder)


def test_a_folder_without_a_manifest_passes(tmp_path):
    assert check_manifest(tmp_path) == {}
