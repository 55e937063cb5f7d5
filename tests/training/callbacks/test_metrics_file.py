"""metrics.jsonl: whole lines, also while the training runs and after it failed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import CancelledError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StepEvent, TrainingCallback
from luthier.training.callbacks.metrics_file import MetricsFile
from luthier.training.loop import tune

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(4)]
OPTIONS = TrainingOptions(num_epochs=2, batch_size=2, accumulate_steps=1, learning_rate=0.01)


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _prompt(base: BaseModel) -> SoftPrompt:
    return SoftPrompt(torch.ones(2, base.hidden_size), kind="causal", places=("decoder",))


def test_every_event_is_one_line_of_json(tmp_path: Path, tiny_causal_base: BaseModel) -> None:
    path = tmp_path / "metrics.jsonl"
    result = tune(
        tiny_causal_base,
        _prompt(tiny_causal_base),
        RECORDS,
        validation=RECORDS[:1],
        options=OPTIONS,
        callbacks=[MetricsFile(path)],
    )
    lines = _lines(path)
    epoch = ["step", "step", "evaluation", "epoch"]
    assert [line["event"] for line in lines] == ["start", *epoch, *epoch, "finish"]
    assert all("timestamp" in line for line in lines)
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["loss"] for line in steps] == [point.value for point in result.losses]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert lines[0]["options"]["seed"] == 73  # type: ignore[index]
    assert lines[-1]["num_steps"] == 4


def test_lines_are_there_while_the_training_runs(
    tmp_path: Path, tiny_causal_base: BaseModel
) -> None:
    path = tmp_path / "metrics.jsonl"
    seen: list[int] = []

    class Reader(TrainingCallback):
        def on_step(self, event: StepEvent) -> None:
            seen.append(sum(line["event"] == "step" for line in _lines(path)))

    callbacks = [MetricsFile(path), Reader()]
    tune(
        tiny_causal_base,
        _prompt(tiny_causal_base),
        RECORDS,
        options=OPTIONS,
        callbacks=callbacks,
    )
    assert seen == [1, 2, 3, 4]


def test_a_cancelled_training_leaves_no_finish(tmp_path: Path, tiny_causal_base: BaseModel) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("left over from an earlier run\n")
    with pytest.raises(CancelledError):
        tune(
            tiny_causal_base,
            _prompt(tiny_causal_base),
            RECORDS,
            options=OPTIONS,
            callbacks=[MetricsFile(path)],
            should_stop=lambda: path.exists() and len(path.read_text().splitlines()) >= 3,
        )
    assert [line["event"] for line in _lines(path)] == ["start", "step", "step", "epoch"]


def test_a_resumed_training_keeps_the_lines_up_to_its_checkpoint(
    tmp_path: Path, tiny_causal_base: BaseModel
) -> None:
    path = tmp_path / "metrics.jsonl"
    options = dataclasses.replace(OPTIONS, save_every_steps=1, keep_checkpoints=0)
    tune(
        tiny_causal_base,
        _prompt(tiny_causal_base),
        RECORDS,
        options=options,
        callbacks=[MetricsFile(path)],
        run_folder=tmp_path,
    )
    whole = [line for line in _lines(path) if line["event"] == "step"]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    tune(
        tiny_causal_base,
        _prompt(tiny_causal_base),
        RECORDS,
        options=options,
        callbacks=[MetricsFile(path)],
        resume_from=tmp_path / "checkpoints" / "step-000000003",
    )
    lines = _lines(path)
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["loss"] for line in steps] == [line["loss"] for line in whole]
    events = ["start", "step", "step", "epoch", "step", "start", "step", "epoch", "finish"]
    assert [line["event"] for line in lines] == events
    assert lines[5]["first_step"] == 3
