"""``--local`` through the real entry point, with a real runtime and a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import luthier
from luthier.cli.local_runtime import private_runtime
from luthier.config import load_config
from luthier.errors import LuthierError
from luthier.modules import configure

ROWS = [
    {"input": "my parcel is late", "output": "delivery"},
    {"input": "I was charged twice", "output": "payment"},
]


def run_luthier(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_model_tuned_here_generates_here_as_it_does_in_python(
    data: Path, tiny_causal_dir: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    trained = run_luthier(
        "train", "--local", "--output-dir", models, "--model-name", "intents",
        "--base-model", tiny_causal_dir, "--train-data", data, "--num-virtual-tokens", 4,
        "--num-epochs", 2, "--learning-rate", 0.1, "--accumulate-steps", 1, "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["path"] == str(models / "intents")
    assert "step 2/2  loss" in trained.stderr

    generated = run_luthier(
        "generate", models / "intents", "where is it?", "--local", "--max-new-tokens", 8,
        "--base-models-dir", tiny_causal_dir.parent, "--json",
    )  # fmt: skip
    assert generated.returncode == 0, generated.stderr

    assert json.loads(generated.stdout)["text"] == in_python(models / "intents", tiny_causal_dir)


def in_python(folder: Path, base_model: Path) -> str:
    """The same answer without a runtime; the environment of this process is put back."""
    try:
        configure(load_config({"BASE_MODELS_DIR": str(base_model.parent)}))
        result = luthier.load(str(folder)).run(
            "where is it?", max_new_tokens=8, preserve_input_text=False
        )
        return str(result.generated_text)
    finally:
        configure(load_config())


def test_interrupt_cancels_and_leaves_no_process(data: Path, tiny_causal_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", "train", "--local",
         "--output-dir", str(data.parent / "models"), "--model-name", "endless",
         "--base-model", str(tiny_causal_dir), "--train-data", str(data),
         "--num-virtual-tokens", "4", "--num-epochs", "1000", "--accumulate-steps", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    lines = iter(process.stderr)
    assert any("loss" in line for line in lines), "no progress was shown"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "cancelled" in rest
    assert "Traceback" not in rest
    assert not (data.parent / "models" / "endless").exists()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    process.stderr.close()


def test_runtime_that_does_not_start_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_DTYPE", "float31")
    with (
        pytest.raises(LuthierError, match=r"did not start: .*'torch_dtype'.*float31"),
        private_runtime(tmp_path / "models"),
    ):
        pass


def test_runtime_ends_with_a_command_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib\n"
        "from luthier.cli.local_runtime import private_runtime\n"
        f"with private_runtime(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('ready', flush=True)\n"
        "    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the runtime outlived its command"
        time.sleep(0.1)
