"""Jobs of two processes through a server: killed and resumed, canceled, failed, refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
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
    "batch_size": 2,
    "accumulate_steps": 2,
    "learning_rate": 0.01,
    "seed": 5,
}
OPTIONS: dict[str, Any] = {"save_every_steps": 1, "schedule": "cosine"}


@pytest.fixture
def runtime(tmp_path: Path, tiny_base_models_dir: Path) -> Iterator[RunningRuntime]:
    """A server with real modules, whose main training process is killed once."""
    yield from run_dying_runtime(tmp_path, tiny_base_models_dir)


def test_a_job_of_two_processes_learns_what_one_learns(
    runtime: RunningRuntime, tmp_path: Path
) -> None:
    (tmp_path / "mark").touch()  # nobody is killed
    with runtime.http as http:
        job = _start(http, "tuned", OPTIONS | {"num_processes": 2})
        _wait_for_end(http, job)
        assert _status(http, job)["state"] == "COMPLETED", _status(http, job)
    _require_losses_of_one_process(runtime, job)


@pytest.mark.slow
def test_a_job_of_two_processes_is_killed_and_goes_on(
    runtime: RunningRuntime, tmp_path: Path
) -> None:
    with runtime.http as http:
        job = _start(http, "tuned", OPTIONS | {"num_processes": 2})
        _wait_for_end(http, job)
        found = _status(http, job)
        assert found["state"] == "ERRORED"
        assert "process 0 of 2 was killed by signal 9 (SIGKILL)" in found["reasons"][0]
        wait_for(lambda: not _processes_of(tmp_path), 30)
        answer = http.post("/management/trainings/resume", params=job)
        assert answer.status_code == 200, answer.text
        _wait_for_end(http, job)
        assert _status(http, job)["state"] == "COMPLETED", _status(http, job)
    starts = [line["first_step"] for line in _events(runtime, job) if line["event"] == "start"]
    assert starts == [0, 3]
    _require_losses_of_one_process(runtime, job)


@pytest.mark.slow
def test_a_job_of_two_processes_can_be_canceled_and_can_fail(
    runtime: RunningRuntime, tmp_path: Path
) -> None:
    (tmp_path / "mark").touch()  # nobody is killed
    with runtime.http as http:
        job = _start(http, "endless", OPTIONS | {"num_processes": 2}, num_epochs=900)
        wait_for(lambda: _events(runtime, job) or _status(http, job)["state"] == "ERRORED", 120)
        assert _status(http, job)["state"] == "RUNNING", _status(http, job)
        assert len(_processes_of(tmp_path)) == 3  # the job's worker, and two below it
        answer = http.delete("/management/trainings", params=job)
        assert answer.status_code == 200, answer.text
        assert _status(http, job)["state"] == "CANCELED"
        wait_for(lambda: not _processes_of(tmp_path), 30)

        frozen = {"num_processes": 2, "freeze_layers": ["lora_"]}
        job = _start(http, "failing", OPTIONS | frozen)
        _wait_for_end(http, job)
        found = _status(http, job)
        assert found["state"] == "ERRORED"
        assert found["reasons"][0].startswith("invalid_input: ")
        assert "'freeze_layers' freezes all" in found["reasons"][0]

        answer = _post(http, "many", OPTIONS | {"num_processes": 9})
        assert answer.status_code == 400
        assert "'num_processes' must be at most 8, got 9" in answer.text


def _require_losses_of_one_process(runtime: RunningRuntime, job: dict[str, str]) -> None:
    steps = [line for line in _events(runtime, job) if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 10))
    alone = LoraTuning.train(train_stream=ROWS, training_options=OPTIONS, **PARAMETERS)
    expected = [line["data"]["value"] for line in alone.history.lines if line["name"] == "loss"]
    assert [line["loss"] for line in steps] == pytest.approx(expected, abs=1e-3)
    tuned = luthier.load(runtime.models_dir / "tuned")
    assert tuned.lora.method == "lora"
    tuned.release()
    alone.release()


def _post(http: httpx.Client, name: str, options: dict[str, Any], **changes: Any) -> httpx.Response:
    stream = {"data_stream": {"data": ROWS}}
    own = {"train_stream": stream, "training_options": options}
    return http.post(TRAIN, json={"model_name": name, "parameters": PARAMETERS | own | changes})


def _start(
    http: httpx.Client, name: str, options: dict[str, Any], **changes: Any
) -> dict[str, str]:
    answer = _post(http, name, options, **changes)
    assert answer.status_code == 200, answer.text
    return {"training_id": answer.json()["training_id"]}


def _status(http: httpx.Client, job: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/management/trainings", params=job).json()
    return found


def _wait_for_end(http: httpx.Client, job: dict[str, str]) -> None:
    wait_for(lambda: _status(http, job)["state"] not in ("QUEUED", "RUNNING"), 120)


def _events(runtime: RunningRuntime, job: dict[str, str]) -> list[dict[str, Any]]:
    file = runtime.models_dir / ".jobs" / job["training_id"] / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def _processes_of(tmp_path: Path) -> list[int]:
    """Workers of this test's server, and what they launched."""
    mark = f"DYING_MARK={tmp_path / 'mark'}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_worker = b"luthier.runtime.jobs." in (folder / "cmdline").read_bytes()
            if folder.name.isdigit() and is_worker and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
