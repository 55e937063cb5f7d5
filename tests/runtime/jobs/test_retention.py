"""Folders of ended jobs stay for a while, those of living ones for ever."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from luthier.runtime.jobs.base import Job, JobState, TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder, Outcome
from luthier.runtime.jobs.memory_store import MemoryJobStore
from luthier.runtime.jobs.retention import JobRetention

NOW = 1_000_000.0


def make_job(jobs: Path, name: str, *, age: float) -> JobFolder:
    spec = TrainingSpec("module", name, {}, jobs / name, 1)
    folder = JobFolder(jobs / name)
    folder.create(spec, [{"input": "a", "output": "b"}])
    folder.write_outcome(Outcome("failed", "x"))
    for path in folder.path.iterdir():
        os.utime(path, (NOW - age, NOW - age))
    return folder


@pytest.fixture
def store() -> MemoryJobStore:
    return MemoryJobStore()


def retention(jobs: Path, store: MemoryJobStore, keep_seconds: float = 100) -> JobRetention:
    return JobRetention(jobs, store, keep_seconds=keep_seconds, clock=lambda: NOW)


def test_only_jobs_that_ended_long_ago_go(tmp_path, store):
    make_job(tmp_path, "old", age=101)
    make_job(tmp_path, "young", age=99)
    lively = make_job(tmp_path, "lively", age=101)
    os.utime(lively.path / "outcome.json", (NOW - 1, NOW - 1))
    assert retention(tmp_path, store).sweep() == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lively", "young"]


def test_what_waits_runs_or_is_locked_stays(tmp_path, store):
    for name in ("waits", "runs", "elsewhere"):
        folder = make_job(tmp_path, name, age=1000)
        if name != "elsewhere":
            job = Job(name, folder.read_spec(), folder.path, JobState.QUEUED, datetime.now(UTC))
            store.add(job)
    store.move("runs", JobState.RUNNING)
    with JobFolder(tmp_path / "elsewhere").locked():
        assert retention(tmp_path, store).sweep() == []
    assert retention(tmp_path, store).sweep() == ["elsewhere"]


def test_nothing_to_sweep_is_no_error(tmp_path, store):
    assert retention(tmp_path / "none", store).sweep() == []


async def test_it_sweeps_by_itself_until_it_is_cancelled(tmp_path, store):
    make_job(tmp_path, "old", age=101)
    task = asyncio.create_task(retention(tmp_path, store).run())
    while list(tmp_path.iterdir()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
