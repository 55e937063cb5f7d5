"""What one request may ask for is the operator's to say, and every door refuses more by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures.echo_runtime import EchoLog, RunningRuntime, run_runtime, wait_for
from google.protobuf.message_factory import GetMessageClass

import luthier
from luthier.cli.app import app
from luthier.cli.failures import run_command
from luthier.config import load_config
from luthier.errors import InvalidInputError
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.registry import engines
from luthier.modules import TextGeneration, configure
from luthier.modules.service_package import service_packages

LIMITS = {
    "INFERENCE_LIMITS_MAX_NEW_TOKENS": "50",
    "INFERENCE_LIMITS_MAX_PROMPT_TOKENS": "40",
    "INFERENCE_LIMITS_MAX_STOP_SEQUENCES": "1",
    "INFERENCE_LIMITS_MAX_STOP_SEQUENCE_CHARS": "10",
    "INFERENCE_LIMITS_MAX_TIME_SECONDS": "9.0",
    "INFERENCE_LIMITS_MAX_N": "2",
    "INFERENCE_LIMITS_MAX_BEAMS": "2",
    "INFERENCE_MAX_RUNNING": "1",
    "INFERENCE_MAX_WAITING": "1",
}
SERVICE = "caikit.runtime.Nlp.NlpService"


class RealModules(EchoLog):
    """Loads what is saved, where the fixture would load echoes."""

    def load(self, folder: Path) -> Any:
        return luthier.load(folder)


@dataclass
class Doors:
    """A server, and a model that it serves."""

    runtime: RunningRuntime
    model: TextGeneration

    def http(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        self._post("text-generations" if n > 1 else "text-generation", text, parameters, n)

    def sse(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        self._post("server-streaming-text-generation", text, parameters, n)

    def grpc(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        self._refused("TextGenerationTaskPredict", text, parameters)

    def grpc_stream(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        self._refused("ServerStreamingTextGenerationTaskPredict", text, parameters)

    def python(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        try:
            if n > 1:
                self.model.run_many(text, n, **parameters)
            else:
                self.model.run(text, **parameters)
        except InvalidInputError as error:
            raise Refused(str(error)) from error

    def cli(self, text: str, parameters: dict[str, Any], n: int = 1) -> None:
        arguments = ["generate", "model", text, "--url", self.runtime.http_url, "--n", str(n)]
        for name, value in parameters.items():
            if name == "decoding_method":
                arguments.append("--sample")
                continue
            option = {"stop_sequences": "stop"}.get(name, name).replace("_", "-")
            for each in value if isinstance(value, list) else [value]:
                arguments += [f"--{option}", str(each)]
        assert run_command(app, arguments) != 0

    def _post(self, task: str, text: str, parameters: dict[str, Any], n: int) -> None:
        body = {"model_id": "model", "inputs": text, "parameters": parameters}
        with self.runtime.http as client:
            more = {"n": n} if n > 1 else {}
            response = client.post(f"/api/v1/task/{task}", json=body | more)
        assert response.status_code == 400, response.text
        raise Refused(json.loads(response.text)["details"])

    def _refused(self, rpc: str, text: str, parameters: dict[str, Any]) -> None:
        try:
            self.call(rpc, text, parameters)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            raise Refused(error.details()) from error

    def call(self, rpc: str, text: str, parameters: dict[str, Any]) -> None:
        method = service_packages().inference.descriptor.methods_by_name[rpc]
        request = GetMessageClass(method.input_type)(text=text, **parameters)
        answer = GetMessageClass(method.output_type).FromString
        with self.runtime.channel() as channel:
            is_stream = rpc.startswith("Server")
            make = channel.unary_stream if is_stream else channel.unary_unary
            call = make(
                f"/{SERVICE}/{rpc}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer,
            )
            got = call(request, metadata=(("mm-model-id", "model"),), timeout=60)
            list(got) if is_stream else got


class Refused(Exception):
    """What a door says."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory, tiny_base_models_dir: Path) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("limits")
    environ = {
        "BASE_MODELS_DIR": str(tiny_base_models_dir),
        "RUNTIME_LOCAL_MODELS_DIR": str(folder / "models"),
        "RUNTIME_GRPC_PORT": "0",
        "RUNTIME_HTTP_PORT": "0",
        "RUNTIME_DRAIN_SECONDS": "1",
        **LIMITS,
    }
    running = run_runtime(environ, RealModules())
    runtime = next(running)
    model = TextGeneration.bootstrap("tiny-causal")
    model.save(folder / "models" / "model")
    yield Doors(runtime, model)
    model.release()
    with pytest.raises(StopIteration):
        next(running)
    configure(load_config({}))


#: Text, parameters, and what must be said.
TOO_MUCH: dict[str, tuple[str, dict[str, Any], str]] = {
    "new tokens": ("a", {"max_new_tokens": 51}, "'max_new_tokens' must be"),
    "prompt": ("number " * 60, {}, "tokens, at most 40 are allowed"),
    "stops": ("a", {"stop_sequences": ["a", "b"]}, "'stop_sequences' has 2 entries, at most 1"),
    "long stop": ("a", {"stop_sequences": ["x" * 11]}, "11 characters, at most 10"),
    "time": ("a", {"max_time": 10.0}, "'max_time' must be"),
    "beams": ("a", {"num_beams": 3}, "'num_beams' must be"),
}
EVERY_DOOR: dict[str, Callable[..., None]] = {
    "http": Doors.http,
    "sse": Doors.sse,
    "grpc": Doors.grpc,
    "grpc stream": Doors.grpc_stream,
    "python": Doors.python,
}


@pytest.mark.parametrize("door", EVERY_DOOR)
@pytest.mark.parametrize("what", TOO_MUCH)
def test_every_door_refuses_too_much_and_names_the_limit(
    doors: Doors, door: str, what: str
) -> None:
    text, parameters, said = TOO_MUCH[what]
    with pytest.raises(Refused) as refusal:
        EVERY_DOOR[door](doors, text, parameters)
    assert said in str(refusal.value)


@pytest.mark.parametrize("what", TOO_MUCH)
def test_the_command_line_passes_on_what_the_server_says(
    doors: Doors, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text, parameters, said = TOO_MUCH[what]
    doors.cli(text, parameters)
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("door", ["http", "python", "cli"])
def test_too_many_answers_are_refused_where_there_can_be_several(
    doors: Doors, door: str, capfd: pytest.CaptureFixture[str]
) -> None:
    parameters = {"decoding_method": "SAMPLING"}
    if door == "cli":
        doors.cli("a", parameters, n=3)
        said = capfd.readouterr().err
    else:
        with pytest.raises(Refused) as refusal:
            getattr(doors, door)("a", parameters, n=3)
        said = str(refusal.value)
    assert "'n' must be" in said and "2" in said and "3" in said


def test_a_full_queue_says_on_every_wire_when_to_try_again(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_step = threading.Event()
    step = BatchedEngine._step
    monkeypatch.setattr(BatchedEngine, "_step", lambda self: (may_step.wait(60), step(self))[1])
    body = {"model_id": "model", "inputs": "a"}
    try:
        with doors.runtime.http as client, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, "/api/v1/task/text-generation", json=body)
            wait_for(lambda: any(engine.status().num_waiting == 1 for engine in engines()))
            response = client.post("/api/v1/task/text-generation", json=body)
            assert response.status_code == 429, response.text
            assert int(response.headers["retry-after"]) >= 1
            assert "at most 1 may" in response.json()["details"]
            with pytest.raises(grpc.RpcError) as refusal:
                doors.call("TextGenerationTaskPredict", "a", {})
            assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(refusal.value.trailing_metadata())["retry-after"]) >= 1
            may_step.set()
            assert waiting.result().status_code == 200, "who was let in is answered"
    finally:
        may_step.set()
