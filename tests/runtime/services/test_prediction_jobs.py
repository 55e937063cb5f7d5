"""Generation in the background."""

from __future__ import annotations

import asyncio

import pytest
from caikit.core.data_model import JobStatus

from luthier.errors import CapacityError, ConflictError, EngineError, JobNotFoundError
from luthier.runtime.services.prediction_jobs import PredictionJobsService


async def answer(value: object = "text", seconds: float = 0.0) -> object:
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


async def test_a_job_runs_and_its_result_is_kept():
    jobs = PredictionJobsService()
    prediction_id = jobs.start(answer("text", 0.02)).prediction_id
    assert jobs.status(prediction_id).state is JobStatus.RUNNING
    with pytest.raises(ConflictError, match="RUNNING"):
        jobs.result(prediction_id)
    await asyncio.sleep(0.05)
    status = jobs.status(prediction_id)
    assert status.state is JobStatus.COMPLETED
    assert status.completion_timestamp > status.submission_timestamp
    assert jobs.result(prediction_id) == "text"


async def test_a_failed_job_says_why():
    jobs = PredictionJobsService()
    prediction_id = jobs.start(answer(EngineError("the row failed"))).prediction_id
    await asyncio.sleep(0.01)
    assert jobs.status(prediction_id).state is JobStatus.ERRORED
    assert jobs.status(prediction_id).reasons == ["engine_failed: the row failed"]
    with pytest.raises(EngineError):
        jobs.result(prediction_id)


async def test_a_cancelled_job_stops():
    jobs = PredictionJobsService()
    prediction_id = jobs.start(answer(seconds=60)).prediction_id
    assert (await jobs.cancel(prediction_id)).state is JobStatus.CANCELED
    with pytest.raises(ConflictError, match="CANCELED"):
        jobs.result(prediction_id)


async def test_unknown_jobs_are_named():
    jobs = PredictionJobsService()
    for ask in (jobs.status, jobs.result):
        with pytest.raises(JobNotFoundError, match="'nobody'"):
            ask("nobody")
    with pytest.raises(JobNotFoundError):
        await jobs.cancel("nobody")


async def test_too_many_jobs_are_refused_and_old_results_forgotten():
    jobs = PredictionJobsService(max_running=1, max_finished=1)
    first = jobs.start(answer(seconds=0.01)).prediction_id
    with pytest.raises(CapacityError):
        jobs.start(answer())
    await asyncio.sleep(0.03)
    second = jobs.start(answer()).prediction_id
    await asyncio.sleep(0.01)
    assert jobs.status(second).state is JobStatus.COMPLETED
    with pytest.raises(JobNotFoundError):
        jobs.status(first)


async def test_close_cancels_what_runs():
    jobs = PredictionJobsService()
    prediction_id = jobs.start(answer(seconds=60)).prediction_id
    await jobs.close()
    assert jobs.status(prediction_id).state is JobStatus.CANCELED
