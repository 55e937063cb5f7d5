"""The contract of job stores, run on the one in memory. A durable store is one more parameter."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from luthier.errors import ConflictError, JobNotFoundError
from luthier.runtime.jobs.base import TRANSITIONS, Job, JobState, JobStore, TrainingSpec
from luthier.runtime.jobs.memory_store import MemoryJobStore


def make_job(job_id: str = "job") -> Job:
    spec = TrainingSpec("module", "model", {}, Path("/models/model"), num_train_records=1)
    return Job(job_id, spec, Path("/jobs") / job_id, JobState.QUEUED, datetime.now(UTC))


@pytest.fixture(params=[MemoryJobStore])
def store(request) -> JobStore:
    return request.param()


def test_an_added_job_is_found(store):
    store.add(make_job("a"))
    assert store.get("a").state is JobState.QUEUED


def test_an_unknown_job_is_named_in_the_error(store):
    with pytest.raises(JobNotFoundError, match="'nobody'"):
        store.get("nobody")
    with pytest.raises(JobNotFoundError):
        store.move("nobody", JobState.RUNNING)


def test_an_id_is_used_once(store):
    store.add(make_job("a"))
    with pytest.raises(ConflictError, match="'a'"):
        store.add(make_job("a"))


@pytest.mark.parametrize("to", list(JobState))
@pytest.mark.parametrize("path", [(), ("RUNNING",), ("RUNNING", "COMPLETED"), ("CANCELED",)])
def test_only_the_transitions_of_the_table_happen(store, path, to):
    store.add(make_job("a"))
    for step in path:
        store.move("a", JobState[step])
    before = store.get("a")
    if to in TRANSITIONS[before.state]:
        assert store.move("a", to).state is to
    else:
        with pytest.raises(ConflictError):
            store.move("a", to)
        assert store.get("a") == before


def test_times_and_reasons_are_kept(store):
    store.add(make_job("a"))
    running = store.move("a", JobState.RUNNING)
    assert running.started_at is not None and running.finished_at is None
    ended = store.move("a", JobState.ERRORED, reasons=("training_failed: NaN",))
    assert ended.finished_at >= running.started_at
    assert store.get("a").reasons == ("training_failed: NaN",)


def test_jobs_are_listed_by_state_oldest_first(store):
    for name in ("a", "b", "c"):
        store.add(make_job(name))
    store.move("b", JobState.RUNNING)
    assert [job.job_id for job in store.list_jobs()] == ["a", "b", "c"]
    assert [job.job_id for job in store.list_jobs({JobState.QUEUED})] == ["a", "c"]


def test_of_two_who_start_the_same_job_one_wins(store):
    store.add(make_job("a"))
    errors: list[Exception] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            store.move("a", JobState.RUNNING)
        except ConflictError as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7


def test_only_the_last_finished_jobs_are_remembered():
    store = MemoryJobStore(max_finished=2)
    for name in ("waits", "a", "b", "c"):
        store.add(make_job(name))
    for name in ("a", "b", "c"):
        store.move(name, JobState.CANCELED)
    assert [job.job_id for job in store.list_jobs()] == ["waits", "b", "c"]


def test_a_job_that_failed_can_wait_again_and_is_not_forgotten_meanwhile():
    store = MemoryJobStore(max_finished=1)
    store.add(make_job("a"))
    store.move("a", JobState.RUNNING)
    store.move("a", JobState.ERRORED, reasons=("killed",))
    again = store.move("a", JobState.QUEUED)
    assert (again.started_at, again.finished_at, again.reasons) == (None, None, ())
    for name in ("b", "c"):
        store.add(make_job(name))
        store.move(name, JobState.CANCELED)
    assert [job.job_id for job in store.list_jobs()] == ["a", "c"]
    with pytest.raises(ConflictError, match="QUEUED and cannot become QUEUED"):
        store.move("a", JobState.QUEUED)
