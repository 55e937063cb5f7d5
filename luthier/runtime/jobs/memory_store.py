"""Jobs in memory: gone when the process is. The simplest store that keeps the contract."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection
from datetime import UTC, datetime

from luthier.errors import ConflictError, JobNotFoundError
from luthier.runtime.jobs.base import TRANSITIONS, Job, JobState, JobStore


class MemoryJobStore(JobStore):
    """Keeps every waiting and running job, and the last ``max_finished`` final ones.

    Args:
        max_finished: Final jobs that are remembered; the oldest are forgotten beyond it.
    """

    def __init__(self, *, max_finished: int = 10_000) -> None:
        self._max_finished = max_finished
        self._jobs: dict[str, Job] = {}
        self._finished: list[str] = []
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Remember a new job."""
        with self._lock:
            if job.job_id in self._jobs:
                raise ConflictError(f"job {job.job_id!r} exists already")
            self._jobs[job.job_id] = job

    def get(self, job_id: str) -> Job:
        """The job as it stands now."""
        with self._lock:
            return self._get(job_id)

    def move(self, job_id: str, to: JobState, *, reasons: tuple[str, ...] = ()) -> Job:
        """Change a job's state if ``TRANSITIONS`` allows it."""
        with self._lock:
            job = self._get(job_id)
            if to not in TRANSITIONS[job.state]:
                raise ConflictError(
                    f"job {job_id!r} is {job.state.name} and cannot become {to.name}"
                )
            now = datetime.now(UTC)
            moved = dataclasses.replace(
                job,
                state=to,
                reasons=reasons,
                started_at=_started_at(job, to, now),
                finished_at=now if to.is_final else None,
            )
            self._jobs[job_id] = moved
            if job.state.is_final:
                self._finished.remove(job_id)
            if to.is_final:
                self._forget_beyond_limit(job_id)
            return moved

    def list_jobs(self, states: Collection[JobState] = tuple(JobState)) -> tuple[Job, ...]:
        """Jobs in any of these states, oldest submission first."""
        with self._lock:
            return tuple(job for job in self._jobs.values() if job.state in states)

    def _get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise JobNotFoundError(f"Unknown training_id: {job_id[:80]!r}")
        return job

    def _forget_beyond_limit(self, finished_id: str) -> None:
        self._finished.append(finished_id)
        if len(self._finished) > self._max_finished:
            del self._jobs[self._finished.pop(0)]


def _started_at(job: Job, to: JobState, now: datetime) -> datetime | None:
    if to is JobState.QUEUED:
        return None
    return now if to is JobState.RUNNING else job.started_at
