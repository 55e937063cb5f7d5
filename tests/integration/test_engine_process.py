"""A server whose engines are processes: killed, started again, drained."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.server_process import ServerProcess, server_process
from fixtures.tuned_server import LORA_TUNING, PROMPT_TUNING, train_body
from google.protobuf.message_factory import GetMessageClass

from luthier.modules.service_package import service_packages

pytestmark = pytest.mark.slow

PROMPT, LORA = "grpc-prompt-causal", "grpc-lora-causal"
GENERATE = "/api/v1/task/text-generation"
STREAM = "/api/v1/task/server-streaming-text-generation"


@pytest.fixture
def server(tmp_path: Path, tiny_base_models_dir: Path) -> Iterator[ServerProcess]:
    environ = {
        "INFERENCE_PROCESS_ENABLED": "true",
        "INFERENCE_PROCESS_RESTART_SECONDS": "0",
        "RUNTIME_DRAIN_SECONDS": "60",
        "TMPDIR": str(tmp_path),
    }
    with server_process(tmp_path, tiny_base_models_dir, environ) as made:
        yield made


def children_of(pid: int) -> list[int]:
    """Processes whose parent has this id, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def body(model_id: str, **parameters: Any) -> dict[str, Any]:
    return {"model_id": model_id, "inputs": "hello", "parameters": parameters}


def ask_http(client: httpx.Client, model_id: str) -> str:
    response = client.post(GENERATE, json=body(model_id, max_new_tokens=8))
    assert response.status_code == 200, response.text
    text: str = response.json()["generated_text"]
    return text


def ask_grpc(server: ServerProcess, model_id: str) -> str:
    package = service_packages().inference
    method = package.descriptor.methods_by_name["TextGenerationTaskPredict"]
    request = GetMessageClass(method.input_type)(text="hello", max_new_tokens=8)
    with server.channel() as channel:
        rpc = package.stub_class(channel).TextGenerationTaskPredict
        text: str = rpc(request, metadata=(("mm-model-id", model_id),)).generated_text
        return text


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def wait_until(is_true: Callable[[], bool], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_killed_engine_costs_its_requests_and_nothing_else(
    server: ServerProcess, tmp_path: Path
) -> None:
    for name, rpc in ((PROMPT, PROMPT_TUNING), (LORA, LORA_TUNING)):
        assert server.train(rpc, train_body(name), seconds=240)["state"] == "COMPLETED"
    with server.http as client:
        answers = {name: ask_http(client, name) for name in (PROMPT, LORA)}
        assert answers == {name: ask_grpc(server, name) for name in answers}
        (engine,) = children_of(server.process.pid)
        endless = body(PROMPT, max_new_tokens=900, min_new_tokens=900)
        with client.stream("POST", STREAM, json=endless) as response:
            stream = events(response.iter_lines())
            next(stream)
            os.kill(engine, signal.SIGKILL)
            *_, last = stream
        assert last["error"] == "engine_failed"
        assert "killed by signal 9 (SIGKILL)" in last["details"]
        wait_until(lambda: client.get("/health").status_code == 200)
        assert answers == {name: ask_http(client, name) for name in answers}
        (restarted,) = children_of(server.process.pid)
        assert restarted != engine
        with client.stream("POST", STREAM, json=body(LORA, max_new_tokens=200)) as response:
            stream = events(response.iter_lines())
            next(stream)
            # As an orchestrator may do it: everything that belongs to the server is told to end.
            for pid in (restarted, server.process.pid):
                os.kill(pid, signal.SIGTERM)
            *_, last = stream
        assert last["details"]["finish_reason"] in ("MAX_TOKENS", "EOS_TOKEN")
    assert server.process.wait(60) == 0
    wait_until(lambda: not Path(f"/proc/{restarted}").exists())
    assert list(tmp_path.glob("luthier-engine-*")) == []
    log = server.log_file.read_text()
    assert "Traceback" not in log.partition("stopping:")[2]
