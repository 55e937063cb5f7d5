"""Where a training may put its model."""

from __future__ import annotations

from pathlib import Path

import pytest
from caikit.interfaces.common.data_model.stream_sources import S3Path

from luthier.errors import ConflictError, NameNotAllowedError, NotSupportedError
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.services.training_request import TrainingPlaces, TrainingRequest


def request(name: str = "tuned", output_path: S3Path | None = None) -> TrainingRequest:
    return TrainingRequest("module", name, {}, [], output_path=output_path)


@pytest.fixture
def places(tmp_path: Path) -> TrainingPlaces:
    return TrainingPlaces(tmp_path, served=ModelsDir(tmp_path), max_model_name_chars=20)


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a/b", "x\0", "", "x" * 10_000, ".jobs", "x" * 21]
)
def test_a_model_name_that_leaves_the_folder_is_refused(name: str, places: TrainingPlaces) -> None:
    with pytest.raises(NameNotAllowedError):
        places.model_folder(request(name), "id-1")


def test_a_model_name_that_differs_in_case_alone_is_refused(places: TrainingPlaces) -> None:
    (places.output_dir / "Tuned").mkdir()
    (places.output_dir / "Tuned" / "config.yml").write_text("")
    with pytest.raises(ConflictError, match="'Tuned'"):
        places.model_folder(request(), "id-1")


def test_an_output_path_is_below_the_output_folder_or_refused(places: TrainingPlaces) -> None:
    def folder_of(path: S3Path) -> Path:
        return places.model_folder(request(output_path=path), "id-1")

    assert folder_of(S3Path(path="team/a")) == places.output_dir / "team" / "a" / "tuned"
    assert folder_of(S3Path()) == places.output_dir / "tuned"
    with pytest.raises(NotSupportedError, match="S3"):
        folder_of(S3Path(bucket="b", path="x"))
    for path in ("../x", "/etc"):
        with pytest.raises(NameNotAllowedError):
            folder_of(S3Path(path=path))


@pytest.mark.parametrize("path", ["other", "other/adapter"])
def test_a_place_inside_a_model_is_refused(path: str, places: TrainingPlaces) -> None:
    (places.output_dir / "other" / "adapter").mkdir(parents=True)
    (places.output_dir / "other" / "config.yml").write_text("module_id: x")
    with pytest.raises(ConflictError, match="inside the model 'other'"):
        places.model_folder(request(output_path=S3Path(path=path)), "id-1")


def test_what_is_no_model_is_not_trained_over(places: TrainingPlaces) -> None:
    (places.output_dir / "tuned").mkdir()
    (places.output_dir / "tuned" / "notes.txt").write_text("dear")
    with pytest.raises(ConflictError, match="'tuned'"):
        places.model_folder(request(), "id-1")


def test_models_are_saved_under_the_training_id_if_asked_for(tmp_path: Path) -> None:
    places = TrainingPlaces(tmp_path, save_with_id=True)
    assert places.model_folder(request(), "id-1") == tmp_path / "id-1" / "tuned"
