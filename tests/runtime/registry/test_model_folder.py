"""Names to folders, and nothing outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import ConflictError, ModelNotFoundError, NameNotAllowedError
from luthier.runtime.registry.model_folder import ModelsDir


@pytest.fixture
def models(tmp_path) -> ModelsDir:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.yml").write_text("module_id: secret\n")
    models = ModelsDir(tmp_path / "models")
    add(models, "good")
    return models


def add(models: ModelsDir, name: str, config: str = 'module_id: "abc-1"\n') -> Path:
    folder = models.path / name
    folder.mkdir()
    (folder / "config.yml").write_text(config)
    return folder


HOSTILE_NAMES = [
    "../secret",
    "..\\secret",
    "/etc",
    "a/b",
    "good/../../secret",
    "good\0",
    "%2e%2e",
    "x" * 10_000,
    ".hidden",
    "good.",
    "good ",
    "CON",
    "",
    "\u0261ood",
    "..",
    ".",
    "-rf",
    "a\nb",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("ask", ["folder_of", "version_of", "remove", "size_bytes", "module_id"])
def test_a_name_that_is_no_name_reaches_no_file(models, name, ask):
    with pytest.raises(NameNotAllowedError) as caught:
        getattr(models, ask)(name)
    assert len(str(caught.value)) < 500
    assert (models.path.parent / "secret").is_dir()


def test_a_name_longer_than_the_limit_is_refused(tmp_path):
    with pytest.raises(NameNotAllowedError, match="at most 8"):
        ModelsDir(tmp_path, max_name_chars=8).folder_of("nine-char")


def test_a_missing_model_is_named(models):
    with pytest.raises(ModelNotFoundError, match="Model 'nope' not loaded"):
        models.version_of("nope")


def test_a_folder_without_config_is_no_model(models):
    (models.path / "half").mkdir()
    (models.path / "file").write_text("")
    with pytest.raises(ModelNotFoundError):
        models.version_of("half")
    with pytest.raises(ModelNotFoundError):
        models.version_of("file")
    assert models.names() == ["good"]


def test_hidden_folders_are_not_listed(models):
    add(models, ".deploy-1")
    assert models.names() == ["good"]


def test_a_version_changes_with_its_content_and_only_then(models):
    before = models.version_of("good")
    assert models.version_of("good") == before
    models.remove("good")
    add(models, "good")
    assert models.version_of("good") != before


def test_a_removed_model_is_gone(models):
    models.remove("good")
    assert list(models.path.iterdir()) == []
    with pytest.raises(ModelNotFoundError):
        models.remove("good")


def test_names_that_differ_in_case_alone_are_refused(models):
    models.require_no_lookalike("good")
    models.require_no_lookalike("better")
    with pytest.raises(ConflictError, match="'good'"):
        models.require_no_lookalike("GOOD")


def test_size_and_module_id_are_read_from_the_files(models):
    folder = add(models, "sized", "name: x\nmodule_id: 'm-1'\n")
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(b"x" * 100)
    assert models.size_bytes("sized") == 100 + len("name: x\nmodule_id: 'm-1'\n")
    assert models.module_id("sized") == "m-1"
    add(models, "silent", "name: x\n")
    assert models.module_id("silent") == ""


def test_a_folder_that_was_taken_away_holds_no_models(tmp_path):
    models = ModelsDir(tmp_path / "models")
    (tmp_path / "models").rmdir()
    assert models.names() == []
    models.require_no_lookalike("new")
