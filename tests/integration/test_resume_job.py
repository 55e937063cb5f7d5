"""A server's training that was killed goes on when it is asked to, and ends as if it never was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from caikit.interfaces.runtime.data_model import TrainingInfoRequest, TrainingStatusResponse
from fixtures.dying_runtime import run_dying_runtime
from fixtures.echo_runtime import (
    RunningRuntime,
    wait_for,
)
from fixtures.train_rows import ROWS

import luthier
from luthier.modules import LoraTuning

TRAIN = "/api/v1/TextGenerationTaskLoraTuningTrain"
PARAMETERS: dict[str, Any] = {
    "base_model": "tiny-causal",
    "num_epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "dropout": 0.1,
    "seed": -1,
    "training_options": {"save_every_steps": 1, "weight_decay": 0.1, "schedule": "cosine"},
}
#: Pairs and conversations in one stream.
DATA: list[dict[str, Any]] = [
    *ROWS[:6],
    *(
        {
            "messages": [
                {"role": "user", "content": row["input"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in ROWS[6:]
    ),
]


@pytest.fixture
def runtime(tmp_path: Path, tiny_base_models_dir: Path) -> Iterator[RunningRuntime]:
    """A server with real modules, whose worker is killed once."""
    yield from run_dying_runtime(tmp_path, tiny_base_models_dir)


def test_a_killed_training_ends_as_if_it_never_was(runtime: RunningRuntime, tmp_path: Path) -> None:
    with runtime.http as http, runtime.channel() as channel:

        def status() -> dict[str, Any]:
            found: dict[str, Any] = http.get("/management/trainings", params=job).json()
            return found

        stream = {"data_stream": {"data": DATA}}
        body = {"model_name": "tuned", "parameters": PARAMETERS | {"train_stream": stream}}
        answer = http.post(TRAIN, json=body)
        assert answer.status_code == 200, answer.text
        job = {"training_id": answer.json()["training_id"]}
        wait_for(lambda: status()["state"] == "ERRORED", 120)
        assert "signal 9" in status()["reasons"][0]
        folder = runtime.models_dir / ".jobs" / job["training_id"]
        steps = [line["step"] for line in _events(folder) if line["event"] == "step"]
        assert steps == [1, 2, 3]
        assert (folder / "run" / "checkpoints" / "step-000000003").is_dir()

        message = TrainingInfoRequest(**job).to_proto()
        resume = channel.unary_unary("/luthier.TrainingControl/ResumeTraining")
        resumed = TrainingStatusResponse.get_proto_class().FromString(
            resume(message.SerializeToString())
        )
        assert resumed.training_id == job["training_id"]
        wait_for(lambda: status()["state"] in ("COMPLETED", "ERRORED"), 120)
        assert status()["state"] == "COMPLETED", status()
        again = http.post("/management/trainings/resume", params=job)
        assert (again.status_code, again.json()["error"]) == (409, "conflict")

    events = _events(folder)
    assert [line["step"] for line in events if line["event"] == "step"] == list(range(1, 10))
    assert not (folder / "run" / "checkpoints").exists()
    assert not (folder / "train.jsonl").exists()
    seed = next(line["options"]["seed"] for line in events if line["event"] == "start")
    whole = LoraTuning.train(train_stream=DATA, **PARAMETERS | {"seed": seed})
    tuned = luthier.load(runtime.models_dir / "tuned")
    assert tuned.lora.content_hash() == whole.lora.content_hash()
    assert tuned.generator.style.prompt_format == "chat_template"
    tuned.release()
    whole.release()


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
