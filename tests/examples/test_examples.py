"""Every example runs as its README says: from the repository's root, offline, to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
#: Stories that take minutes as they stand run with these arguments.
SHORT: dict[str, tuple[str, ...]] = {
    "demo": (
        "--base-model", "tiny-causal", "--num-train", "40", "--num-test", "8", "--num-epochs", "2",
        "--min-accuracy", "0",
    ),
}  # fmt: skip
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "README.md").is_file())


def run_example(
    name: str, *arguments: str, timeout_seconds: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    (main,) = EXAMPLES.joinpath(name).glob("main.*")
    program = sys.executable if main.suffix == ".py" else "bash"
    # The examples' scripts say ".venv/bin/python"; here it is whatever runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [program, str(main), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        env={
            **os.environ,
            "PATH": path,
            "PYTHON": sys.executable,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "RUNTIME_HTTP_PORT": "0",
            "RUNTIME_GRPC_PORT": "0",
            **environment,
        },
    )


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_to_its_end(name: str, tiny_base_models_dir: Path, tmp_path: Path) -> None:
    arguments = list(SHORT.get(name, ()))
    if name == "demo":
        arguments += ["--folder", str(tmp_path)]
    environment = {"BASE_MODELS_DIR": str(tiny_base_models_dir), "HF_HOME": str(tmp_path / "hf")}
    done = run_example(name, *arguments, timeout_seconds=280, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "demo":
        assert "all four agree" in done.stdout
        assert "step 10/10  loss" in done.stderr
    if name == "spam_filter":
        assert "all doors agree: HTTP, gRPC, CLI, CLI, local, Python" in done.stdout
    if name == "download_base_model":
        assert "ALLOW_DOWNLOADS=true" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_example_stands_in_the_table(name: str) -> None:
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo_learns_on_the_real_model(tmp_path: Path) -> None:
    done = run_example(
        "demo", "--folder", str(tmp_path), "--num-train", "160", "--num-test", "16",
        "--num-epochs", "2", "--min-accuracy", "0.3", timeout_seconds=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
