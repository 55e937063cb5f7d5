"""A server with a fake module behind it, for tests of the doors and services."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fixtures.echo_runtime import WORKER_ENVIRONMENT, EchoLog, RunningRuntime, run_runtime


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A server with the models ``echo`` and ``other``; trainings run the fake library."""
    folder = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WORKER_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("FAKE_STARTED_FILE", str(folder / "started"))
        for name in ("good", "fails", "slow", "stubborn"):
            # Enough for the check of a request; the fake library never reads it.
            (folder / "bases" / name).mkdir(parents=True)
            config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
            (folder / "bases" / name / "config.json").write_text(json.dumps(config))
        environ = {
            "BASE_MODELS_DIR": str(folder / "bases"),
            "RUNTIME_TRAINING_CANCEL_GRACE_SECONDS": "0.5",
            "RUNTIME_LOCAL_MODELS_DIR": str(folder / "models"),
            "RUNTIME_GRPC_PORT": "0",
            "RUNTIME_HTTP_PORT": "0",
            "RUNTIME_HTTP_MAX_BODY_BYTES": str(2 * 1024 * 1024),
            "RUNTIME_DRAIN_SECONDS": "1",
            "RUNTIME_TRAINING_MAX_RUNNING_JOBS": "2",
        }
        running = run_runtime(environ, EchoLog())
        server = next(running)
        server.add_model("echo")
        server.add_model("other")
        yield server
        with pytest.raises(StopIteration):
            next(running)
