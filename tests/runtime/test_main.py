"""``python -m luthier.runtime`` from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from fixtures.server_process import server_process


def test_it_stops_in_order_even_while_a_training_runs(tmp_path, tiny_base_models_dir):
    parameters = {
        "base_model": "tiny-causal",
        "num_epochs": 1000,
        "batch_size": 1,
        "tuning_config": {"num_virtual_tokens": 4},
        "train_stream": {"data_stream": {"data": [{"input": "a", "output": "b"}] * 200}},
    }
    with server_process(tmp_path, tiny_base_models_dir) as server:
        with server.http as client:
            assert client.get("/health").text == "OK"
            response = client.post(
                "/api/v1/TextGenerationTaskPeftPromptTuningTrain",
                json={"model_name": "endless", "parameters": parameters},
            )
            query = {"training_id": response.json()["training_id"]}
            status = client.get("/management/trainings", params=query)
            assert status.json()["state"] in ("QUEUED", "RUNNING")
        assert server.stop(15) == 0
        with server.http as client, pytest.raises(httpx.ConnectError):
            client.get("/health")
        assert "stopped" in server.log_file.read_text()
        assert not (server.models_dir / "endless").exists()


def test_ctrl_c_stops_it_too(tmp_path):
    with server_process(tmp_path, tmp_path, {"RUNTIME_GRPC_ENABLED": "false"}) as server:
        assert server.grpc_address == ""
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RUNTIME_HTTP_PORT": "eighty"}, "runtime.http.port"),
        ({"CONFIG_FILES": "wrong.yml"}, "did you mean"),
        ({"CONFIG_FILES": "/nowhere.yml"}, "/nowhere.yml"),
    ],
)
def test_a_setting_that_cannot_be_ends_it_with_one_line(tmp_path, environ, message):
    (tmp_path / "wrong.yml").write_text("runtime: {http: {prt: 80}}")
    ended = subprocess.run(
        [sys.executable, "-m", "luthier.runtime"],
        env={**os.environ, **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and message in ended.stderr
    assert "Traceback" not in ended.stderr and ended.stdout == ""


def test_a_taken_port_ends_it_with_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "luthier.runtime"],
            env={**os.environ, "RUNTIME_HTTP_PORT": port, "RUNTIME_GRPC_PORT": "0"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert port in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=["default", "active"])
def test_idle_threads_sleep_unless_the_operator_wants_otherwise(given):
    program = (
        "import os, sys; from luthier.runtime.__main__ import share_cpus; share_cpus();"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **given},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [given.get("OMP_WAIT_POLICY", "PASSIVE"), "False"], done.stderr
