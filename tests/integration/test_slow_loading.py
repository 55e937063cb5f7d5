"""While a base model is loaded, or its engine started, everybody else is served as ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from fixtures.echo_runtime import EchoLog, RunningRuntime, run_runtime, sse_messages
from grpc_health.v1 import health_pb2, health_pb2_grpc

import luthier.modules
from luthier.config import load_config
from luthier.inference import registry
from luthier.modules import TextGeneration, configure
from luthier.modules.service_package import service_packages
from luthier.modules.text_generation import text_generation
from luthier.runtime import assembly
from luthier.runtime.registry.served_module import LoadModule

TASKS = "/api/v1/task"
LENGTH = {"max_new_tokens": 40, "min_new_tokens": 40}

#: Where it takes long: what is held up, and how models are loaded.
PLACES: dict[str, tuple[Any, str, LoadModule]] = {
    "weights": (text_generation, "load_base_model", assembly.load_saved_model),
    "engine": (registry, "make_engine", assembly.load_saved_model),
    "engine at the first request": (registry, "make_engine", luthier.modules.load),
}


@dataclass
class Loads:
    """Stands in for the log of the fake modules: real ones are loaded."""

    load: LoadModule


class HeldUp:
    """A function that waits, once the test says so, until the test lets it go on."""

    def __init__(self, owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
        self.is_armed = False
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        function = getattr(owner, name)

        def slow(*arguments: Any, **named: Any) -> Any:
            if self.is_armed:
                self.has_begun.set()
                assert self.may_end.wait(120)
            return function(*arguments, **named)

        patch.setattr(owner, name, slow)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[Any, str, LoadModule]:
    return PLACES[request.param]


@pytest.fixture
def held_up(
    place: tuple[Any, str, LoadModule], monkeypatch: pytest.MonkeyPatch
) -> Iterator[HeldUp]:
    made = HeldUp(place[0], place[1], monkeypatch)
    yield made
    made.may_end.set()


@pytest.fixture
def server(
    place: tuple[Any, str, LoadModule], tiny_base_models_dir: Path, tmp_path: Path
) -> Iterator[RunningRuntime]:
    """With two models, each of which is a base model of its own."""
    environ = {
        "BASE_MODELS_DIR": str(tiny_base_models_dir),
        "RUNTIME_LOCAL_MODELS_DIR": str(tmp_path / "models"),
        "RUNTIME_GRPC_PORT": "0",
        "RUNTIME_HTTP_PORT": "0",
        "RUNTIME_DRAIN_SECONDS": "1",
    }
    configure(load_config(environ))
    model = TextGeneration.bootstrap("tiny-causal")
    for name in ("quick", "slow"):
        model.save(str(tmp_path / "models" / name))
    model.release()
    running = run_runtime(environ, cast(EchoLog, Loads(place[2])))
    yield next(running)
    with pytest.raises(StopIteration):
        next(running)
    configure(load_config({}))


class Http:
    """Asks over HTTP."""

    def __init__(self, server: RunningRuntime) -> None:
        self._http = server.http

    def close(self) -> None:
        self._http.close()

    def stream(self, model: str, text: str) -> Iterator[str]:
        body = {"model_id": model, "inputs": text, "parameters": LENGTH}
        path = f"{TASKS}/server-streaming-text-generation"
        with self._http.stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                for message in sse_messages(line):
                    yield message["generated_text"]

    def is_healthy(self) -> bool:
        return bool(self._http.get("/health").text == "OK")


class Grpc:
    """Asks over gRPC."""

    def __init__(self, server: RunningRuntime) -> None:
        self._channel = server.channel()
        self._packages = service_packages().inference
        self._stub: Any = self._packages.stub_class(self._channel)

    def close(self) -> None:
        self._channel.close()

    def stream(self, model: str, text: str) -> Iterator[str]:
        messages: Any = self._packages.messages
        request = messages.ServerStreamingTextGenerationTaskRequest(text=text, **LENGTH)
        rpc = self._stub.ServerStreamingTextGenerationTaskPredict
        for result in rpc(request, metadata=(("mm-model-id", model),), timeout=60):
            yield result.generated_text

    def is_healthy(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="")
        status = health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=60).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)


DOORS: tuple[Callable[[RunningRuntime], Http | Grpc], ...] = (Http, Grpc)


@pytest.mark.parametrize("door", DOORS)
def test_tokens_and_health_flow_while_another_model_is_loaded(
    server: RunningRuntime, held_up: HeldUp, door: Callable[[RunningRuntime], Http | Grpc]
) -> None:
    with closing(door(server)) as client, closing(door(server)) as other:
        expected = list(client.stream("quick", "the red"))
        begun = client.stream("quick", "the red")
        got = [next(begun)]
        held_up.is_armed = True
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(lambda: list(other.stream("slow", "the red")))
            assert held_up.has_begun.wait(60)
            # A loop that waits for the load answers none of these before they time out.
            assert list(client.stream("quick", "the red")) == expected
            assert [*got, *begun] == expected
            assert client.is_healthy()
            assert not slow.done()
            held_up.may_end.set()
            assert slow.result(60) == expected
