"""When checkpoints are written, and which ones stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import list_checkpoints
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(8)]
#: 4 updates per epoch, 12 in all.
OPTIONS = TrainingOptions(num_epochs=3, learning_rate=0.01, batch_size=2, accumulate_steps=1)


def _run(base: BaseModel, folder: Path, **changes: Any) -> TrainingResult:
    extra = {name: changes.pop(name) for name in ("backup_folder", "validation") if name in changes}
    tensor = torch.randn(4, base.hidden_size, generator=torch.Generator().manual_seed(1))
    return tune(
        base,
        SoftPrompt(tensor, kind="causal", places=("decoder",)),
        RECORDS,
        options=dataclasses.replace(OPTIONS, **changes),
        run_folder=folder,
        **extra,
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [8, 12]),
        ({"keep_checkpoints": 1}, [12]),
        ({"keep_checkpoints": 0}, [4, 8, 12]),
        ({"save_every_steps": 5, "keep_checkpoints": 0}, [4, 5, 8, 10, 12]),
        ({"save_checkpoint": "each_evaluation"}, [4, 8, 12]),
        ({"save_checkpoint": "never"}, []),
        ({"save_checkpoint": "never", "save_every_steps": 5}, [5, 10]),
    ],
)
def test_the_policy_says_which_checkpoints_are_there(
    changes: dict[str, Any], expected: list[int], tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    _run(tiny_causal_base, tmp_path, **changes)
    assert list(list_checkpoints(tmp_path / "checkpoints")) == expected
    assert not list(tmp_path.rglob("*.partial"))


def test_the_best_checkpoint_is_kept_on_top(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    changes = {"learning_rate": 3.0, "num_epochs": 5, "keep_checkpoints": 1}
    result = _run(tiny_causal_base, tmp_path, validation=RECORDS[:2], **changes)
    best = min(result.validation_losses, key=lambda point: point.value).step
    assert set(list_checkpoints(tmp_path / "checkpoints")) == {best, 20}


def test_a_folder_with_checkpoints_is_not_taken_for_a_new_training(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    _run(tiny_causal_base, tmp_path / "run")
    with pytest.raises(ConflictError, match="'run' already holds checkpoints"):
        _run(tiny_causal_base, tmp_path / "run")


def test_a_backup_has_the_same_files(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    _run(tiny_causal_base, tmp_path / "run", backup_folder=tmp_path / "backup")
    original = list_checkpoints(tmp_path / "run" / "checkpoints")
    copies = list_checkpoints(tmp_path / "backup")
    assert list(copies) == list(original) == [8, 12]
    for step, folder in original.items():
        for path in folder.rglob("*"):
            copy = copies[step] / path.relative_to(folder)
            assert path.is_dir() or copy.read_bytes() == path.read_bytes()


def test_a_backup_that_fails_does_not_end_the_training(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    result = _run(tiny_causal_base, tmp_path / "run", backup_folder=tmp_path / "file" / "backup")
    assert result.num_steps == 12
