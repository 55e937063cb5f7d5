"""Which server a command asks, and under which name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.cli import local_runtime
from luthier.cli.asked_model import asked_model
from luthier.errors import InvalidInputError


def test_a_served_model_is_asked_by_its_id() -> None:
    with asked_model("intents", "http://here:1", local=False, base_models_dir=None) as asked:
        client, model_id = asked
        assert (client.url, model_id) == ("http://here:1", "intents")


def test_a_saved_model_gets_a_server_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    @contextmanager
    def runtime(models_dir: Path, *, base_models_dir: Path | None) -> Iterator[str]:
        started.append((models_dir, base_models_dir))
        yield "client"

    monkeypatch.setattr(local_runtime, "private_runtime", runtime)
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yml").touch()
    with asked_model(str(folder), "", local=True, base_models_dir=tmp_path) as asked:
        assert asked == ("client", "mine")
    assert started == [(folder.parent, tmp_path)]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInputError, match=r"is no saved model: it holds no config\.yml"),
        asked_model(str(tmp_path), "", local=True, base_models_dir=None),
    ):
        pass
