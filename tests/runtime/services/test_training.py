"""Trainings are refused at once or accepted for good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from caikit.core.data_model import JobStatus

from luthier.data_model.streams import StreamLimits
from luthier.errors import (
    CapacityError,
    ConflictError,
    InvalidInputError,
    JobNotFoundError,
    NameNotAllowedError,
    TrainingDataError,
)
from luthier.runtime.jobs.base import Job, JobExecutor, JobState
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.jobs.memory_store import MemoryJobStore
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.services.training import TrainingChecks, TrainingService
from luthier.runtime.services.training_request import JOBS_FOLDER, TrainingPlaces, TrainingRequest

RECORDS = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


class StillExecutor(JobExecutor):
    """Keeps jobs waiting for ever."""

    def __init__(self, store: MemoryJobStore) -> None:
        self.store = store
        self.is_full = False

    def submit(self, job: Job) -> None:
        if self.is_full:
            raise CapacityError("full")
        if job.job_id in [known.job_id for known in self.store.list_jobs()]:
            self.store.move(job.job_id, JobState.QUEUED)
        else:
            self.store.add(job)

    async def cancel(self, job_id: str) -> Job:
        job = self.store.get(job_id)
        return job if job.state.is_final else self.store.move(job_id, JobState.CANCELED)

    async def stop(self) -> None:
        pass


@pytest.fixture
def make_bench(tmp_path) -> Callable[[], SimpleNamespace]:
    """Makes a service that knows nothing yet, over the same files."""
    return lambda: _make_bench(tmp_path)


@pytest.fixture
def bench(make_bench) -> SimpleNamespace:
    return make_bench()


def _make_bench(tmp_path: Path) -> SimpleNamespace:
    store = MemoryJobStore()
    executor = StillExecutor(store)
    checked: list[tuple[Any, ...]] = []
    served = ModelsDir(tmp_path / "models")
    service = TrainingService(
        store,
        executor,
        places=TrainingPlaces(tmp_path / "models", served=served, max_model_name_chars=20),
        checks=TrainingChecks(StreamLimits((), 3), lambda *given: checked.append(given)),
    )
    return SimpleNamespace(
        service=service, store=store, executor=executor, checked=checked, models=tmp_path / "models"
    )


def request(**changes: Any) -> TrainingRequest:
    given = TrainingRequest("module", "tuned", {"base_model": "tiny"}, RECORDS)
    return replace(given, **changes)


async def test_an_accepted_training_has_an_id_nobody_can_guess_and_its_files(bench):
    started = await bench.service.submit(request())
    other = await bench.service.submit(request())
    assert len(started.training_id) == 36 and started.training_id != other.training_id
    assert started.model_name == "tuned"
    job = bench.store.get(started.training_id)
    assert job.spec.model_folder == bench.models / "tuned"
    folder = JobFolder(bench.models / JOBS_FOLDER / started.training_id)
    assert folder.read_spec() == job.spec
    assert list(folder.read_records(folder.train_file)) == RECORDS
    assert bench.service.status(started.training_id).state is JobStatus.QUEUED


async def test_the_module_is_asked_before_a_job_is_made(bench):
    await bench.service.submit(request(validation_source=RECORDS[:1]))
    [(module_id, parameters, train, validation)] = bench.checked
    assert (module_id, parameters["base_model"]) == ("module", "tiny")
    assert [record.output for record in train] == ["b", "d"]
    assert len(validation) == 1


@pytest.mark.parametrize("source", [None, []])
async def test_a_training_without_records_is_refused(bench, source):
    with pytest.raises(TrainingDataError, match="train_stream cannot be empty"):
        await bench.service.submit(request(train_source=source))
    assert bench.store.list_jobs() == ()


async def test_a_bad_row_is_named_by_its_number(bench):
    with pytest.raises(TrainingDataError, match="row 2"):
        await bench.service.submit(request(train_source=[RECORDS[0], {"input": "x"}]))
    with pytest.raises(TrainingDataError, match="most that are allowed"):
        await bench.service.submit(request(train_source=RECORDS * 2))
    assert not (bench.models / JOBS_FOLDER).exists()


async def test_a_name_or_place_that_is_refused_leaves_nothing_behind(bench):
    with pytest.raises(NameNotAllowedError):
        await bench.service.submit(request(model_name="../x"))
    assert list(bench.models.iterdir()) == []
    (bench.models / "tuned").mkdir()
    (bench.models / "tuned" / "notes.txt").write_text("dear")
    with pytest.raises(ConflictError, match="'tuned'"):
        await bench.service.submit(request())
    assert bench.store.list_jobs() == ()


async def test_a_full_queue_leaves_nothing_behind(bench):
    bench.executor.is_full = True
    with pytest.raises(CapacityError):
        await bench.service.submit(request())
    assert list((bench.models / JOBS_FOLDER).iterdir()) == []


async def test_a_caller_who_goes_away_leaves_nothing_behind(bench):
    submitting = asyncio.ensure_future(bench.service.submit(request()))
    await asyncio.sleep(0)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    jobs = bench.models / JOBS_FOLDER
    for _ in range(100):
        await asyncio.sleep(0.01)
        if jobs.exists() and not list(jobs.iterdir()):
            break
    assert list(jobs.iterdir()) == [] and bench.store.list_jobs() == ()


async def test_cancel_answers_with_the_state_afterwards(bench):
    started = await bench.service.submit(request())
    assert (await bench.service.cancel(started.training_id)).state is JobStatus.CANCELED
    assert (await bench.service.cancel(started.training_id)).state is JobStatus.CANCELED


async def test_an_unknown_or_missing_id_is_refused(bench):
    with pytest.raises(JobNotFoundError, match="Unknown training_id"):
        bench.service.status("nobody")
    with pytest.raises(InvalidInputError, match="training_id"):
        await bench.service.cancel("")
    with pytest.raises(JobNotFoundError):
        await bench.service.metrics("nobody")


async def test_metrics_are_those_of_the_progress_file(bench):
    started = await bench.service.submit(request())
    assert await bench.service.metrics(started.training_id) == []
    job = bench.store.get(started.training_id)
    line = {"event": "step", "epoch": 0, "step": 1, "loss": 2.5}
    JobFolder(job.folder).metrics_file.write_text(json.dumps(line) + "\n")
    [metric] = await bench.service.metrics(started.training_id)
    assert (metric["name"], metric["value"], metric["step"]) == ("loss", 2.5, 1)


async def test_the_loop_goes_on_while_a_large_training_is_read(bench):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    service = TrainingService(
        bench.store,
        bench.executor,
        places=TrainingPlaces(bench.models),
        checks=TrainingChecks(StreamLimits((), 100_000)),
    )
    await service.submit(request(train_source=RECORDS * 10_000))
    ticking.cancel()
    assert ticks > 3


async def test_a_cancelled_training_can_be_resumed_under_its_id(bench):
    job = await bench.service.submit(request())
    await bench.service.cancel(job.training_id)
    status = await bench.service.resume(job.training_id)
    assert (status.training_id, status.state) == (job.training_id, JobStatus.QUEUED)
    with pytest.raises(ConflictError, match="is QUEUED; only one that is ERRORED or CANCELED"):
        await bench.service.resume(job.training_id)


async def test_a_full_queue_leaves_a_resumed_training_as_it_is(bench):
    job = await bench.service.submit(request())
    await bench.service.cancel(job.training_id)
    bench.executor.is_full = True
    with pytest.raises(CapacityError):
        await bench.service.resume(job.training_id)
    assert bench.service.status(job.training_id).state is JobStatus.CANCELED


async def test_a_server_finds_the_trainings_of_the_one_before_it_by_their_files(make_bench):
    job = await make_bench().service.submit(request())
    bench = make_bench()
    folder = JobFolder(bench.models / JOBS_FOLDER / job.training_id)
    with folder.locked(), pytest.raises(ConflictError, match="is running"):
        await bench.service.resume(job.training_id)
    assert (await bench.service.resume(job.training_id)).state is JobStatus.QUEUED
    found = bench.store.get(job.training_id)
    assert found.spec.model_name == "tuned"


@pytest.mark.parametrize("training_id", ["../../x", "", "x" * 500, "0" * 32])
async def test_what_is_no_training_cannot_be_resumed(bench, training_id):
    with pytest.raises((JobNotFoundError, InvalidInputError)):
        await bench.service.resume(training_id)


async def test_a_training_whose_data_is_gone_cannot_be_resumed(bench):
    job = await bench.service.submit(request())
    await bench.service.cancel(job.training_id)
    JobFolder(bench.models / JOBS_FOLDER / job.training_id).remove_data()
    with pytest.raises(JobNotFoundError, match=r"the data of training .* is gone"):
        await bench.service.resume(job.training_id)
