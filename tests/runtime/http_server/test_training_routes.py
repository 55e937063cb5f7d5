"""Trainings over HTTP: real child processes that train a fake module."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.echo_runtime import RunningRuntime, wait_for

TRAIN = "/api/v1/TextGenerationTaskPeftPromptTuningTrain"
TRAININGS = "/management/trainings"
DATA = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


@pytest.fixture(scope="module")
def http(runtime: RunningRuntime):
    with runtime.http as client:
        yield client


def body(base_model: str = "good", model_name: str = "tuned", **parameters: Any) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "parameters": {
            "base_model": base_model,
            "tuning_config": {"num_virtual_tokens": 4},
            "train_stream": {"data_stream": {"data": DATA}},
            **parameters,
        },
    }


def start(http, **kwargs: Any) -> str:
    response = http.post(TRAIN, json=body(**kwargs))
    assert response.status_code == 200, response.text
    return response.json()["training_id"]


def status(http, training_id: str) -> dict[str, Any]:
    return http.get(TRAININGS, params={"training_id": training_id}).json()


def wait_for_state(http, training_id: str, state: str) -> dict[str, Any]:
    wait_for(lambda: status(http, training_id)["state"] == state, 60)
    return status(http, training_id)


def test_a_tuned_model_is_served_at_once_under_its_name(http, runtime):
    training_id = start(http, num_epochs=3)
    final = wait_for_state(http, training_id, "COMPLETED")
    assert final["submission_timestamp"] < final["completion_timestamp"]
    given = {"model_id": "tuned", "inputs": "a b"}
    answer = http.post("/api/v1/task/text-generation", json=given)
    assert answer.json()["generated_text"] == "ba"
    seen = json.loads((runtime.models_dir / "tuned" / "seen.json").read_text())
    assert (seen["num_epochs"], seen["num_virtual_tokens"]) == (3, 4)
    assert seen["records"] == [["a", "b"], ["c", "d"]]

    # Training it again under the same name serves the new one, without a restart.
    loads = runtime.log.loaded.count("tuned")
    wait_for_state(http, start(http, num_epochs=4), "COMPLETED")
    assert http.post("/api/v1/task/text-generation", json=given).status_code == 200
    assert runtime.log.loaded.count("tuned") == loads + 1


def test_a_failed_training_says_why(http, runtime):
    final = wait_for_state(http, start(http, base_model="fails", model_name="no"), "ERRORED")
    assert "the loss is not finite in row 2" in final["reasons"][0]
    assert not (runtime.models_dir / "no").exists()


def started_pid(runtime: RunningRuntime) -> int:
    file = Path(os.environ["FAKE_STARTED_FILE"])
    wait_for(lambda: file.exists() and file.read_text() != "", 60)
    pid = int(file.read_text())
    file.unlink()
    return pid


@pytest.mark.parametrize("base_model", ["slow", "stubborn"])
def test_cancel_ends_a_training_within_two_seconds(http, runtime, base_model):
    training_id = start(http, base_model=base_model)
    pid = started_pid(runtime)
    assert http.get("/health").text == "OK"
    began = time.monotonic()
    response = http.delete(TRAININGS, params={"training_id": training_id})
    assert time.monotonic() - began < 2
    assert response.json()["state"] == "CANCELED"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_child_is_told_by_its_job(http, runtime):
    training_id = start(http, base_model="slow")
    os.kill(started_pid(runtime), signal.SIGKILL)
    assert "signal 9" in wait_for_state(http, training_id, "ERRORED")["reasons"][0]


def test_trainings_are_listed(http):
    training_id = start(http)
    listed = http.get(TRAININGS).json()["trainings"]
    [mine] = [entry for entry in listed if entry["training_id"] == training_id]
    assert mine["model_name"] == "tuned"
    wait_for_state(http, training_id, "COMPLETED")
    metrics = http.get(f"{TRAININGS}/metrics", params={"training_id": training_id})
    assert metrics.json() == {"metrics": []}


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_an_unknown_training_is_not_found(http, verb):
    response = http.request(verb, TRAININGS, params={"training_id": "nobody"})
    assert response.status_code == 404
    assert "Unknown training_id" in response.json()["details"]


def without(name: str) -> dict[str, Any]:
    given = body()
    del given["parameters"][name]
    return given


def records(*given: Any) -> dict[str, Any]:
    return {"data_stream": {"data": list(given)}}


@pytest.mark.parametrize(
    ("given", "status_code", "message"),
    [
        (without("train_stream"), 400, "train_stream cannot be empty"),
        (body(train_stream=records()), 400, "train_stream cannot be empty"),
        (body(train_stream=records(DATA[0], {"input": "x"})), 400, "row 2"),
        (body(train_stream=records({"input": "x", "output": 1})), 422, "data.0.output"),
        (body(train_stream=records({"inputs": "x"})), 422, "did you mean 'input'?"),
        (body(training_options={"wieght_decay": 1}), 422, "did you mean 'weight_decay'?"),
        (body(training_options={"weight_decay": -1}), 400, "'weight_decay' must be at least 0"),
        (body(training_options={"num_epochs": 1}), 422, "training_options.num_epochs"),
        (
            body(train_stream=records({"messages": [{"role": "user", "content": "x"}]})),
            400,
            "row 1: the last message must be the assistant's",
        ),
        (body(verbalizer="no placeholder"), 400, "placeholder"),
        (body(verbalizer="{{nope}}"), 400, "nope"),
        (without("base_model"), 400, "base_model"),
        (body(base_model="unknown"), 404, "ALLOW_DOWNLOADS"),
        (body(base_model="../good"), 400, "../good"),
        (body(base_model="/etc"), 400, "allowed roots"),
        (without("tuning_config"), 400, "tuning_config"),
        (body(tuning_config={}), 400, "num_virtual_tokens"),
        (body(tuning_config={"num_virtual_tokens": -1}), 400, "num_virtual_tokens"),
        (
            body(tuning_config={"num_virtual_tokens": 4, "prompt_tuning_init_method": "TEXT"}),
            400,
            "prompt_tuning_init_text",
        ),
        (body(tuning_type="LORA"), 501, "LORA tuning type not supported!"),
        (body(num_epochs=-1), 400, "num_epochs"),
        (body(learning_rate=-0.1), 400, "learning_rate"),
        (body(learning_rate="fast"), 422, "valid number"),
        (body(batch_size=2**62), 400, "batch_size"),
        (body(batch_size=2**70), 422, "batch_size"),
        (body(seed=True), 422, "valid integer"),
        (body(num_epoch=3), 422, "num_epoch"),
        (body(model_name="../x"), 400, "../x"),
        (body(model_name="/abs"), 400, "/abs"),
        (body(model_name="x\0"), 400, "model_name"),
        (body(model_name="x" * 10_000), 400, "10000 characters"),
        ({**body(), "output_path": {"bucket": "b"}}, 501, "S3"),
        ({**body(), "output_path": {"path": "../out"}}, 400, "output_path"),
        (
            body(train_stream={"data_stream": {"filename": "/etc/passwd.jsonl"}}),
            400,
            "data_roots",
        ),
        (body(train_stream={"data_stream": {"files": ["a.csv"], "endpoint": "s3"}}), 501, "S3"),
        (body(train_stream={"data_stream": {"nope": 1}}), 422, "one form"),
    ],
)
def test_a_training_that_cannot_succeed_is_refused_at_once(
    http, runtime, given, status_code, message
):
    before = http.get(TRAININGS).json()["trainings"]
    response = http.post(TRAIN, json=given)
    assert response.status_code == status_code, response.text
    assert message in response.json()["details"]
    assert http.get(TRAININGS).json()["trainings"] == before


def test_a_nan_is_no_json(http):
    raw = json.dumps(body(learning_rate=float("nan")))
    response = http.post(TRAIN, content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


def test_a_form_starts_a_training(http):
    given = body()
    parts = {
        "model_name": given["model_name"],
        "parameters.base_model": "good",
        "parameters.num_epochs": "2",
        "parameters.tuning_config": json.dumps(given["parameters"]["tuning_config"]),
        "parameters.train_stream": json.dumps(given["parameters"]["train_stream"]),
    }
    response = http.post(TRAIN, files={key: (None, value) for key, value in parts.items()})
    assert response.status_code == 200, response.text
    wait_for_state(http, response.json()["training_id"], "COMPLETED")


def test_the_other_module_has_its_route(http):
    given = {"model_name": "m", "parameters": {"base_model": "good"}}
    response = http.post("/api/v1/TextGenerationTaskTextGenerationTrain", json=given)
    assert (response.status_code, response.json()["error"]) == (400, "invalid_training_data")


def test_a_key_that_stands_twice_is_refused(http):
    raw = json.dumps(body()).replace('"base_model"', '"base_model": "x", "base_model"', 1)
    response = http.post(TRAIN, content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert "the key 'base_model' stands twice" in response.json()["details"]


def test_a_training_that_is_complete_cannot_be_resumed(http):
    training_id = start(http, model_name="whole")
    wait_for_state(http, training_id, "COMPLETED")
    response = http.post(f"{TRAININGS}/resume", params={"training_id": training_id})
    assert (response.status_code, response.json()["error"]) == (409, "conflict")
    unknown = http.post(f"{TRAININGS}/resume", params={"training_id": "0" * 32})
    assert unknown.status_code == 404
