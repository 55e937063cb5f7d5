"""Jobs in child processes that train a fake module, end well, badly, or not by themselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fixtures.echo_runtime import WORKER_ENVIRONMENT

from luthier.errors import CapacityError, ConflictError, JobNotFoundError
from luthier.runtime.jobs.base import Job, JobState, TrainingSpec
from luthier.runtime.jobs.executor import LocalProcessExecutor
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.jobs.memory_store import MemoryJobStore

MODULE_ID = "6655831b-960a-4dc5-8df4-867026e2cd41"


class Bench:
    """An executor, its store, and jobs for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started_file = folder / "started"
        self.store = MemoryJobStore()
        self.executor = LocalProcessExecutor(
            self.store,
            max_running=1,
            max_waiting=2,
            cancel_grace_seconds=0.5,
            environment={**WORKER_ENVIRONMENT, "FAKE_STARTED_FILE": str(self.started_file)},
        )

    def submit(self, base_model: str, job_id: str = "job") -> JobFolder:
        parameters = {
            "base_model": base_model,
            "num_epochs": 3,
            "tuning_config": {"num_virtual_tokens": 5},
        }
        spec = TrainingSpec(MODULE_ID, job_id, parameters, self.folder / "models" / job_id, 2, 1)
        folder = JobFolder(self.folder / "jobs" / job_id)
        records = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
        folder.create(spec, records, records[:1])
        job = Job(job_id, spec, folder.path, JobState.QUEUED, datetime.now(UTC))
        self.executor.submit(job)
        return folder

    async def until(self, *states: JobState, job_id: str = "job", seconds: float = 60) -> Job:
        deadline = time.monotonic() + seconds
        while self.store.get(job_id).state not in states:
            assert time.monotonic() < deadline, self.store.get(job_id)
            await asyncio.sleep(0.02)
        return self.store.get(job_id)

    async def until_training(self) -> int:
        """Wait until the fake module trains; its process id."""
        deadline = time.monotonic() + 60
        while not self.started_file.exists() or not self.started_file.read_text():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        return int(self.started_file.read_text())


@pytest.fixture
async def bench(tmp_path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.executor.stop()


async def test_a_training_gets_its_parameters_and_records_and_its_model_is_published(bench):
    folder = bench.submit("good")
    job = await bench.until(JobState.COMPLETED, JobState.ERRORED)
    assert job.reasons == ()
    seen = json.loads((bench.folder / "models" / "job" / "seen.json").read_text())
    assert seen["records"] == [["a", "b"], ["c", "d"]]
    assert (seen["num_validation"], seen["num_epochs"], seen["num_virtual_tokens"]) == (1, 3, 5)
    assert seen["session_leader"] and seen["niceness"] >= 10
    assert job.submitted_at <= job.started_at <= job.finished_at
    await asyncio.sleep(0.1)
    assert not folder.train_file.exists() and not folder.staged_model.exists()


@pytest.mark.parametrize(
    ("base_model", "reason"),
    [
        ("fails", "training_failed: step 3: the loss is not finite in row 2"),
        ("breaks", "internal: RuntimeError: out of luck"),
        ("exits", "ended with exit status 7"),
    ],
)
async def test_a_training_that_fails_says_why_and_leaves_no_model(bench, base_model, reason):
    bench.submit(base_model)
    job = await bench.until(JobState.ERRORED)
    assert reason in job.reasons[0]
    assert not (bench.folder / "models").exists()


async def test_a_killed_child_is_an_error_that_names_the_signal(bench):
    bench.submit("slow")
    os.kill(await bench.until_training(), signal.SIGKILL)
    job = await bench.until(JobState.ERRORED, seconds=5)
    assert "signal 9 (SIGKILL)" in job.reasons[0] and "out of memory" in job.reasons[0]


@pytest.mark.parametrize("base_model", ["slow", "stubborn"])
async def test_cancel_ends_the_child_within_two_seconds(bench, base_model):
    bench.submit(base_model)
    pid = await bench.until_training()
    started = time.monotonic()
    job = await bench.executor.cancel("job")
    assert time.monotonic() - started < 2
    assert job.state is JobState.CANCELED and job.reasons
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (await bench.executor.cancel("job")).state is JobState.CANCELED


async def test_a_job_cancelled_while_its_child_starts_ends_too(bench):
    bench.submit("slow")
    assert (await bench.executor.cancel("job")).state is JobState.CANCELED


async def test_jobs_wait_for_their_turn_and_too_many_are_refused(bench):
    bench.submit("slow", "first")
    bench.submit("good", "second")
    bench.submit("good", "third")
    with pytest.raises(CapacityError, match="2 wait") as caught:
        bench.submit("good", "fourth")
    assert caught.value.retry_after_seconds > 0
    with pytest.raises(JobNotFoundError):
        bench.store.get("fourth")
    await bench.until_training()
    assert bench.store.get("second").state is JobState.QUEUED
    assert (await bench.executor.cancel("third")).state is JobState.CANCELED
    await bench.executor.cancel("first")
    await bench.until(JobState.COMPLETED, job_id="second")


async def test_a_stop_ends_all_jobs_and_takes_no_more(bench):
    bench.submit("slow", "first")
    bench.submit("good", "second")
    await bench.until_training()
    await bench.executor.stop()
    assert {job.state for job in bench.store.list_jobs()} == {JobState.CANCELED}
    with pytest.raises(CapacityError, match="stopping"):
        bench.submit("good", "third")


async def test_cancel_of_an_unknown_job_is_refused(bench):
    with pytest.raises(JobNotFoundError):
        await bench.executor.cancel("nobody")


def test_a_worker_dies_with_the_server_that_started_it(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(
        "import asyncio, importlib.util, sys\n"
        "from pathlib import Path\n"
        "import luthier.compat\n"
        f"spec = importlib.util.spec_from_file_location('bench', {__file__!r})\n"
        "bench_module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(bench_module)\n"
        "async def main():\n"
        f"    bench = bench_module.Bench(Path({str(tmp_path)!r}))\n"
        "    bench.submit('slow')\n"
        "    print(await bench.until_training(), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    environ = {**os.environ, "PYTHONPATH": WORKER_ENVIRONMENT["PYTHONPATH"]}
    server = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environ
    )
    with server:
        worker = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + 60
    while _is_alive(worker):
        assert time.monotonic() < deadline, "the worker outlived its server"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_job_that_failed_keeps_its_data_and_runs_again_once(bench):
    folder = bench.submit("fails")
    first = await bench.until(JobState.ERRORED)
    assert folder.train_file.exists() and not folder.staged_model.exists()
    bench.executor.submit(first)
    assert bench.store.get("job").reasons == ()
    with pytest.raises(ConflictError, match="cannot become QUEUED"):
        bench.executor.submit(first)
    again = await bench.until(JobState.ERRORED)
    assert again.reasons == first.reasons and again.started_at > first.finished_at
