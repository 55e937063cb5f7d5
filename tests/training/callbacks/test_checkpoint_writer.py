"""When checkpoints are written, and which ones stay."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StartEvent, TrainingCallback
from luthier.training.callbacks.checkpoint_writer import CheckpointWriter
from luthier.training.checkpointing.checkpoints import (
    checkpoint_folder,
    list_checkpoints,
    write_checkpoint,
)
from luthier.training.checkpointing.state import ResumePoint, TrainingState
from luthier.training.data.examples import TruncationReport
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(8)]
#: 4 updates per epoch, 12 in all.
OPTIONS = TrainingOptions(
    num_epochs=3,
    learning_rate=0.01,
    batch_size=2,
    accumulate_steps=1,
    checkpoint_time_share=1.0,  # all that the policy names, however short the training is
)


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
        ({"save_checkpoint": "resumable"}, [4, 8]),
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


@pytest.mark.parametrize(
    ("keep", "expected"), [(1, [5, 8, 12]), (2, [4, 5, 8, 12]), (0, [1, 2, 3, 4, 5, 8, 12])]
)
def test_a_training_that_goes_on_before_newer_checkpoints_keeps_its_own(
    keep: int, expected: list[int], tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    prompt = SoftPrompt(
        torch.zeros(1, tiny_causal_base.hidden_size), kind="causal", places=("decoder",)
    )
    state = _captured(tiny_causal_base, prompt)
    left_behind = [
        checkpoint_folder(tmp_path / "checkpoints", step) for step in (1, 2, 3, 4, 8, 12)
    ]
    for folder in left_behind:
        write_checkpoint(folder, state, prompt, base_model_name="x")
        shutil.copytree(folder, backups / folder.name)
    options = dataclasses.replace(OPTIONS, keep_checkpoints=keep)
    writer = CheckpointWriter(
        tmp_path, prompt, options, base_model_name="x", is_resumed=True, backup_folder=backups
    )
    writer.on_resume_point(ResumePoint(5, True, True, False, None, lambda: state))
    assert list(list_checkpoints(tmp_path / "checkpoints")) == expected
    assert list(list_checkpoints(backups)) == expected


class _Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _saved_steps(
    base: BaseModel,
    folder: Path,
    *,
    seconds_each: float,
    write_seconds: float,
    num_trainable: int = 0,
    **changes: Any,
) -> list[int]:
    """Steps that are saved of twelve, of which every fourth ends an epoch."""
    clock = _Clock()
    options = dataclasses.replace(
        OPTIONS, checkpoint_time_share=0.05, keep_checkpoints=0, **changes
    )
    prompt = SoftPrompt(torch.zeros(1, base.hidden_size), kind="causal", places=("decoder",))
    writer = CheckpointWriter(folder, prompt, options, base_model_name="x", clock=clock)
    writer.on_start(StartEvent(options, 8, 12, 12, num_trainable, TruncationReport(0, 0, 0, 0)))
    state = _captured(base, prompt)

    def capture() -> TrainingState:
        clock.now += write_seconds
        return state

    for step in range(1, 13):
        clock.now += seconds_each
        is_end = step % 4 == 0
        state.progress.step = step
        writer.on_resume_point(ResumePoint(step, is_end, is_end, step == 12, None, capture))
    return list(list_checkpoints(folder / "checkpoints"))


def _captured(base: BaseModel, prompt: SoftPrompt) -> TrainingState:
    """The state of a training that has just been through."""
    states: list[TrainingState] = []

    class _Catch(TrainingCallback):
        def on_resume_point(self, point: ResumePoint) -> None:
            states.append(point.capture())

    tune(base, prompt, RECORDS, options=OPTIONS, callbacks=(_Catch(),))
    return states[-1]


@pytest.mark.parametrize(
    ("seconds_each", "write_seconds", "num_trainable", "changes", "expected"),
    [
        # Cheap: at the end of each epoch.
        (1.0, 0.01, 0, {}, [4, 8, 12]),
        # 2 s are more than a twentieth of an epoch's 20, so one is left out; the last is not.
        (5.0, 2.0, 0, {}, [4, 12]),
        # The first is guessed from what is learned: 1e9 numbers are a minute.
        (5.0, 2.0, 10**9, {}, [12]),
        # Epochs of an hour: no more than 300 s of work are lost.
        (200.0, 2.0, 0, {}, [2, 4, 6, 8, 10, 12]),
        (200.0, 2.0, 0, {"save_every_seconds": 0.0}, [4, 8, 12]),
        # 30 s each: not before 600 s have passed.
        (200.0, 30.0, 5 * 10**8, {}, [3, 6, 9, 12]),
        (200.0, 2.0, 0, {"save_checkpoint": "resumable"}, [2, 4, 6, 8, 10]),
        (200.0, 2.0, 0, {"save_checkpoint": "never"}, []),
    ],
)
def test_checkpoints_take_a_small_share_of_the_time(
    seconds_each: float,
    write_seconds: float,
    num_trainable: int,
    changes: dict[str, Any],
    expected: list[int],
    tiny_causal_base: BaseModel,
    tmp_path: Path,
) -> None:
    found = _saved_steps(
        tiny_causal_base,
        tmp_path,
        seconds_each=seconds_each,
        write_seconds=write_seconds,
        num_trainable=num_trainable,
        **changes,
    )
    assert found == expected


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
