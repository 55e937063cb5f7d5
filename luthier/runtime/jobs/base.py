"""The contracts of training jobs: what a job is, who remembers it, who runs it.

  add          ┌────────┐  start   ┌─────────┐  finish  ┌───────────┐
─────────────► │ QUEUED │ ───────► │ RUNNING │ ───────► │ COMPLETED │
               └────────┘          └─────────┘          └───────────┘
                 │ ▲  │              │     │            ┌──────────┐
                 │ │  └──────────────│─────┴──────────► │ ERRORED  │ ──┐
                 │ │                 │                  └──────────┘   │
                 │ │                 │                  ┌──────────┐   │ resume
                 └─│─────────────────┴────────────────► │ CANCELED │ ──┤
                   │                                    └──────────┘   │
                   └───────────────────────────────────────────────────┘
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any


class JobState(Enum):
    """Where a job stands; names and numbers are those of the wire."""

    QUEUED = 1
    RUNNING = 2
    COMPLETED = 3
    CANCELED = 4
    ERRORED = 5

    @property
    def is_final(self) -> bool:
        """True if the job has ended; it changes again only if somebody resumes it."""
        return self in (JobState.COMPLETED, JobState.CANCELED, JobState.ERRORED)


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.ERRORED}),
    JobState.RUNNING: frozenset({JobState.COMPLETED, JobState.CANCELED, JobState.ERRORED}),
    JobState.COMPLETED: frozenset(),
    JobState.CANCELED: frozenset({JobState.QUEUED}),
    JobState.ERRORED: frozenset({JobState.QUEUED}),
}


@dataclass(frozen=True)
class TrainingSpec:
    """What a training needs, in words that JSON has.

    Args:
        module_id: The caikit module to train.
        model_name: Name that the tuned model gets.
        parameters: Arguments of the module's ``train`` beside the data, by name.
        model_folder: Final place of the tuned model; it appears there whole or not at all.
        num_train_records: Rows of the training data.
        num_validation_records: Rows of the validation data; 0 for none.
    """

    module_id: str
    model_name: str
    parameters: Mapping[str, Any]
    model_folder: Path
    num_train_records: int
    num_validation_records: int = 0


@dataclass(frozen=True)
class Job:
    """One training, as the store knows it. A snapshot: it does not change under its reader.

    Args:
        job_id: Unguessable and unique.
        spec: What is trained.
        folder: Where its data, log and progress lie.
        state: Where it stands.
        submitted_at: In UTC.
        started_at: In UTC, None until it runs.
        finished_at: In UTC, None until it is final.
        reasons: Why it ended as it did; empty unless CANCELED or ERRORED.
    """

    job_id: str
    spec: TrainingSpec
    folder: Path
    state: JobState
    submitted_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reasons: tuple[str, ...] = ()


class JobStore(ABC):
    """Remembers jobs. Thread-safe; no call waits for a job."""

    @abstractmethod
    def add(self, job: Job) -> None:
        """Remember a new job. Once this returns, the job is acknowledged.

        Args:
            job: QUEUED.

        Raises:
            ConflictError: If a job has this id already.
        """

    @abstractmethod
    def get(self, job_id: str) -> Job:
        """The job as it stands now. Changes nothing.

        Args:
            job_id: A job's id.

        Returns:
            A snapshot.

        Raises:
            JobNotFoundError: If no job has this id.
        """

    @abstractmethod
    def move(self, job_id: str, to: JobState, *, reasons: tuple[str, ...] = ()) -> Job:
        """Change a job's state, atomically: of two callers that race, one gets the error.

        Sets ``started_at`` or ``finished_at`` to now; a job that waits again has neither.

        Args:
            job_id: A job's id.
            to: The next state.
            reasons: Why, where it is CANCELED or ERRORED.

        Returns:
            The job as it stands afterwards.

        Raises:
            JobNotFoundError: If no job has this id.
            ConflictError: If ``TRANSITIONS`` has no such step; the job stays as it is.
        """

    @abstractmethod
    def list_jobs(self, states: Collection[JobState] = tuple(JobState)) -> tuple[Job, ...]:
        """Jobs in any of these states, oldest submission first. Changes nothing."""


class JobExecutor(ABC):
    """Runs jobs, here or elsewhere, and moves them through their states in the store."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Add a QUEUED job to the store and run it as soon as there is room. Returns at once.

        A job that the store knows is put back to QUEUED: it goes on from its last checkpoint.

        Args:
            job: QUEUED, its folder written.

        Raises:
            CapacityError: If the queue is full; then the store is as it was.
            ConflictError: If the store knows the job, and it waits, runs or is complete.
        """

    @abstractmethod
    async def cancel(self, job_id: str) -> Job:
        """Stop a job and wait until it has stopped; a final job stays as it is.

        Args:
            job_id: A job's id.

        Returns:
            The job as it stands afterwards.

        Raises:
            JobNotFoundError: If no job has this id.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Take no more jobs and stop those that wait or run. Idempotent."""
