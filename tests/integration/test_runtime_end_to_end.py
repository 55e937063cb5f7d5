"""Train over both wires, serve at once, and get the same tokens from every door and from Python.

The server runs as a user starts it; the models are the tiny ones.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures.echo_runtime import sse_messages
from fixtures.server_process import ServerProcess
from fixtures.tuned_server import TRAININGS
from google.protobuf.message_factory import GetMessageClass

from luthier.modules.service_package import service_packages

TEXTS = ["the red number 7", "My package never arrived"]
PARAMETERS = {"max_new_tokens": 12, "min_new_tokens": 12, "generated_tokens": True}


@pytest.fixture(scope="module")
def server(runtime_server: tuple[ServerProcess, dict[str, Any]]) -> ServerProcess:
    return runtime_server[0]


@pytest.fixture(scope="module")
def trained(runtime_server: tuple[ServerProcess, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Model name to the final status of its training."""
    return runtime_server[1]


def ask_grpc(server: ServerProcess, model_id: str, text: str, **parameters: Any) -> Any:
    package = service_packages().inference
    method = package.descriptor.methods_by_name["TextGenerationTaskPredict"]
    request = GetMessageClass(method.input_type)(text=text, **parameters)
    with server.channel() as channel:
        stub = package.stub_class(channel)
        return stub.TextGenerationTaskPredict(request, metadata=(("mm-model-id", model_id),))


def ask_grpc_stream(
    server: ServerProcess, model_id: str, text: str, **parameters: Any
) -> list[Any]:
    package = service_packages().inference
    method = package.descriptor.methods_by_name["ServerStreamingTextGenerationTaskPredict"]
    request = GetMessageClass(method.input_type)(text=text, **parameters)
    with server.channel() as channel:
        rpc = package.stub_class(channel).ServerStreamingTextGenerationTaskPredict
        return list(rpc(request, metadata=(("mm-model-id", model_id),)))


def ask_http(server: ServerProcess, route: str, model_id: str, text: str, **parameters: Any) -> str:
    body = {"model_id": model_id, "inputs": text, "parameters": parameters}
    with server.http as client:
        response = client.post(f"/api/v1/task/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.text


PYTHON = """
import json, sys
import luthier
folders, texts, parameters = json.loads(sys.stdin.read())
answers = {}
for name, folder in folders.items():
    model = luthier.load(folder)
    results = [model.run(text, **parameters) for text in texts]
    streams = [model.run_stream_out(text, **parameters) for text in texts]
    answers[name] = [
        {
            "text": result.generated_text,
            "streamed": "".join(piece.generated_text for piece in stream),
            "tokens": [token.text for token in result.tokens],
        }
        for result, stream in zip(results, streams)
    ]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python_answers(
    server: ServerProcess, trained: dict[str, Any], tiny_base_models_dir: Path
) -> dict[str, list[dict[str, Any]]]:
    """By model and text, what a process gives that knows nothing but the folders."""
    folders = {name: str(server.models_dir / name) for name in TRAININGS}
    ended = subprocess.run(
        [sys.executable, "-c", PYTHON],
        input=json.dumps([folders, TEXTS, PARAMETERS]),
        env={**os.environ, "BASE_MODELS_DIR": str(tiny_base_models_dir), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_a_trained_model_gives_the_same_tokens_through_every_door(
    server, trained, python_answers, name
):
    assert trained[name]["state"] == "COMPLETED", trained[name]
    answers = python_answers[name]
    assert len({answer["text"] for answer in answers}) == len(TEXTS), "else this proves nothing"
    for text, answer in zip(TEXTS, answers, strict=True):
        expected, tokens = answer["text"], answer["tokens"]
        assert answer["streamed"] == expected and len(tokens) == PARAMETERS["max_new_tokens"]
        over_grpc = ask_grpc(server, name, text, **PARAMETERS)
        assert over_grpc.generated_text == expected
        assert [token.text for token in over_grpc.tokens] == tokens
        grpc_messages = ask_grpc_stream(server, name, text, **PARAMETERS)
        assert "".join(message.generated_text for message in grpc_messages) == expected
        assert [token.text for each in grpc_messages for token in each.tokens] == tokens
        over_http = json.loads(ask_http(server, "text-generation", name, text, **PARAMETERS))
        assert over_http["generated_text"] == expected
        assert [token["text"] for token in over_http["tokens"]] == tokens
        events = sse_messages(
            ask_http(server, "server-streaming-text-generation", name, text, **PARAMETERS)
        )
        assert "".join(event["generated_text"] for event in events) == expected
        assert len(events) > 3, "streamed token by token"
        assert [token["text"] for event in events for token in event["tokens"] or ()] == tokens
        last = events[-1]["details"]
        assert last["finish_reason"] == over_http["finish_reason"] == "MAX_TOKENS"
        assert last["generated_tokens"] == over_http["generated_tokens"] == len(tokens)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_shows_its_progress(server, trained, name):
    with server.http as client:
        query = {"training_id": trained[name]["training_id"]}
        metrics = client.get("/management/trainings/metrics", params=query).json()["metrics"]
    losses = [metric["value"] for metric in metrics if metric["name"] == "loss"]
    assert len(losses) == metrics[-1]["num_steps"] == 6
    assert [metric["step"] for metric in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(loss > 0 for loss in losses)


def test_sampling_with_a_seed_is_the_same_through_every_door(server, trained):
    parameters = {"max_new_tokens": 8, "decoding_method": "SAMPLING", "seed": 5, "temperature": 2.0}
    name = "grpc-prompt-causal"
    over_grpc = ask_grpc(server, name, "hi", **parameters)
    over_http = json.loads(ask_http(server, "text-generation", name, "hi", **parameters))
    assert over_grpc.generated_text == over_http["generated_text"]
    assert over_grpc.seed == over_http["seed"] == 5
    other = json.loads(ask_http(server, "text-generation", name, "hi", **{**parameters, "seed": 6}))
    assert other["generated_text"] != over_http["generated_text"]


def test_tokens_are_counted_alike(server, trained):
    body = {"model_id": "http-tuned-causal", "inputs": TEXTS[0]}
    with server.http as client:
        over_http = client.post("/api/v1/task/tokenization", json=body).json()
    package = service_packages().inference
    method = package.descriptor.methods_by_name["TokenizationTaskPredict"]
    request = GetMessageClass(method.input_type)(text=TEXTS[0])
    with server.channel() as channel:
        stub = package.stub_class(channel)
        metadata = (("mm-model-id", "http-tuned-causal"),)
        over_grpc = stub.TokenizationTaskPredict(request, metadata=metadata)
    assert over_http["token_count"] == over_grpc.token_count == len(over_http["results"]) > 0


def test_the_data_of_a_training_is_removed_when_it_has_ended(server, trained):
    for name in TRAININGS:
        folder = server.models_dir / ".jobs" / trained[name]["training_id"]
        left = {path.name for path in folder.iterdir()}
        assert left == {"job.json", "metrics.jsonl", "outcome.json", "worker.log"}


def test_a_deadline_reaches_the_model(server, trained):
    with server.channel() as channel:
        package = service_packages().inference
        method = package.descriptor.methods_by_name["TextGenerationTaskPredict"]
        request = GetMessageClass(method.input_type)(
            text="hi", max_new_tokens=900, min_new_tokens=900
        )
        stub = package.stub_class(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.TextGenerationTaskPredict(
                request, metadata=(("mm-model-id", "grpc-prompt-causal"),), timeout=0.2
            )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def damaged_copy(server: ServerProcess, name: str, damage: str) -> Path:
    """A served model whose prompt is cut short, is a pickle, or is gone; the manifest is too."""
    folder = server.models_dir / name
    shutil.copytree(server.models_dir / "grpc-prompt-causal", folder)
    (folder / "manifest.json").unlink()
    weights = folder / "adapter" / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "pickled":
        weights.write_bytes(pickle.dumps({"prompt_embeddings": [1.0]}))
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "config.yml").write_text("module_id: [")
    return folder


@pytest.mark.parametrize("damage", ["truncated", "pickled", "missing", "no yaml"])
def test_a_damaged_model_is_refused_on_both_wires_and_cannot_be_deployed(server, trained, damage):
    name = f"damaged-{damage.replace(' ', '-')}"
    folder = damaged_copy(server, name, damage)
    with pytest.raises(grpc.RpcError) as caught:
        ask_grpc(server, name, "hi")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with server.http as client:
        body = {"model_id": name, "inputs": "hi"}
        response = client.post("/api/v1/task/text-generation", json=body)
        assert response.status_code == 400
        assert response.json()["error"] in ("invalid_artifact", "unsafe_weights")
        assert str(server.models_dir) not in response.text
        files = [
            ("model_files", (path.relative_to(folder).as_posix(), path.read_bytes()))
            for path in folder.rglob("*")
            if path.is_file()
        ]
        deployed = client.post("/management/models", data={"model_id": "sent"}, files=files)
        assert deployed.status_code == 400, deployed.text
    left = {path.name for path in server.models_dir.iterdir()}
    assert "sent" not in left and not [each for each in left if each.startswith(".deploy")]
    shutil.rmtree(folder)


def test_a_model_that_is_sent_to_the_server_answers_as_it_did_where_it_was_made(server, trained):
    folder = server.models_dir / "http-prompt-seq2seq"
    files = [
        ("model_files", (path.relative_to(folder).as_posix(), path.read_bytes()))
        for path in folder.rglob("*")
        if path.is_file()
    ]
    with server.http as client:
        response = client.post("/management/models", data={"model_id": "copy"}, files=files)
        assert response.status_code == 200, response.text
    original, copy = (
        json.loads(ask_http(server, "text-generation", name, TEXTS[0], **PARAMETERS))
        for name in ("http-prompt-seq2seq", "copy")
    )
    assert copy["generated_text"] == original["generated_text"]
    with server.http as client:
        client.delete("/management/models", params={"model_id": "copy"})
    assert not (server.models_dir / "copy").exists()
