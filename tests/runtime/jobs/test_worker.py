"""The child process, run by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fixtures.echo_runtime import WORKER_ENVIRONMENT

from luthier.runtime.jobs.base import TrainingSpec
from luthier.runtime.jobs.executor import PARENT_PID_VARIABLE
from luthier.runtime.jobs.job_folder import JobFolder

MODULE_ID = "6655831b-960a-4dc5-8df4-867026e2cd41"


def run_worker(folder: JobFolder, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.runtime.jobs.worker", str(folder.path)],
        env={**os.environ, **WORKER_ENVIRONMENT, PARENT_PID_VARIABLE: str(os.getpid()), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_job(tmp_path: Path, base_model: str) -> JobFolder:
    spec = TrainingSpec(MODULE_ID, "m", {"base_model": base_model}, tmp_path / "models" / "m", 1)
    folder = JobFolder(tmp_path / "job")
    folder.create(spec, [{"input": "a", "output": "b"}])
    return folder


def test_a_finished_training_is_in_place_and_says_so(tmp_path):
    folder = make_job(tmp_path, "good")
    assert run_worker(folder).returncode == 0
    assert folder.read_outcome().is_complete
    assert (tmp_path / "models" / "m" / "config.yml").is_file()


def test_a_failed_training_exits_with_1_and_says_why(tmp_path):
    folder = make_job(tmp_path, "fails")
    assert run_worker(folder).returncode == 1
    assert folder.read_outcome().word == "training_failed"
    assert not (tmp_path / "models").exists()


def test_a_model_that_was_there_is_replaced(tmp_path):
    old = tmp_path / "models" / "m"
    old.mkdir(parents=True)
    (old / "config.yml").write_text("old")
    assert run_worker(make_job(tmp_path, "good")).returncode == 0
    assert (old / "config.yml").read_text() != "old"


def test_an_orphan_ends_at_once(tmp_path):
    """The server died before the worker could ask to be told of it."""
    folder = make_job(tmp_path, "slow")
    environ = {"FAKE_STARTED_FILE": str(tmp_path / "started"), PARENT_PID_VARIABLE: "1"}
    assert run_worker(folder, **environ).returncode == -9
    assert folder.read_outcome() is None
