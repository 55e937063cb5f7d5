"""Trainings: check all that can be known now, then queue; look at, cancel and list them."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import alog
from caikit.interfaces.runtime.data_model import TrainingJob, TrainingStatusResponse

from luthier.data_model.records import ClassificationTrainRecord
from luthier.data_model.streams import (
    StreamLimits,
    StreamRecord,
    read_train_records,
    record_as_json,
)
from luthier.errors import (
    ConflictError,
    InvalidInputError,
    JobNotFoundError,
    TrainingDataError,
)
from luthier.files.atomic_folder import require_replaceable
from luthier.runtime.jobs.base import Job, JobExecutor, JobState, JobStore, TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.services.training_metrics import read_metrics
from luthier.runtime.services.training_request import TrainingPlaces, TrainingRequest
from luthier.runtime.services.training_status import as_status

log = alog.use_channel(__name__)

#: Refuses parameters and records that the module could not be trained with.
CheckTraining = Callable[[str, Mapping[str, Any], list[StreamRecord], list[StreamRecord]], None]


@dataclass(frozen=True)
class TrainingChecks:
    """What a request is held against before it becomes a job.

    Args:
        stream_limits: Which files may be read, and how many rows.
        check: Refuses a module id, parameters, train and validation records by raising.
    """

    stream_limits: StreamLimits = field(default_factory=StreamLimits)
    check: CheckTraining = lambda module_id, parameters, train, validation: None


class TrainingService:
    """Accepts trainings and answers for them.

    Args:
        store: Remembers them.
        executor: Runs them.
        places: Where they put what they make.
        checks: What is refused at once.
    """

    def __init__(
        self,
        store: JobStore,
        executor: JobExecutor,
        *,
        places: TrainingPlaces,
        checks: TrainingChecks,
    ) -> None:
        self._store = store
        self._executor = executor
        self._places = places
        self._checks = checks

    async def submit(self, request: TrainingRequest) -> TrainingJob:
        """Accept a training, or say at once why it cannot succeed.

        Args:
            request: What to train.

        Returns:
            The training's id and the model's name.

        Raises:
            InvalidInputError: For whatever is wrong with the request; rows are named by number.
            CapacityError: If the queue is full.
        """
        # In a thread: 50,000 rows take a second to check and write.
        preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare, request))
        try:
            job = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            # The caller is gone; the thread is not, and its files must not stay.
            preparing.add_done_callback(_remove_prepared)
            raise
        try:
            self._executor.submit(job)
        except BaseException:
            await asyncio.to_thread(JobFolder(job.folder).remove)
            raise
        log.info("training submitted: job_id=%s", job.job_id)
        return TrainingJob(training_id=job.job_id, model_name=job.spec.model_name)

    def status(self, training_id: str) -> TrainingStatusResponse:
        """Where a training stands.

        Args:
            training_id: From ``submit``.

        Returns:
            Its state, times and, if it failed, the reasons; of one whose model is not
            served, where it lies.

        Raises:
            JobNotFoundError: If there is no such training.
        """
        return as_status(self._store.get(_given(training_id)))

    async def cancel(self, training_id: str) -> TrainingStatusResponse:
        """Stop a training and wait until it has stopped; one that has ended stays as it is.

        Args:
            training_id: From ``submit``.

        Returns:
            Its state afterwards.

        Raises:
            JobNotFoundError: If there is no such training.
        """
        return as_status(await self._executor.cancel(_given(training_id)))

    async def resume(self, training_id: str) -> TrainingStatusResponse:
        """Go on with a training that was cancelled, failed or was killed, from its last checkpoint.

        Without a checkpoint it starts anew. The result is that of a training that never stopped.
        A server that was started since finds the training by its files.

        Args:
            training_id: From ``submit``.

        Returns:
            Its state afterwards: it waits or runs.

        Raises:
            JobNotFoundError: If there is no such training, or its files are gone.
            ConflictError: If it waits, runs or is complete, or its place holds something else now.
            CapacityError: If the queue is full.
        """
        job = await asyncio.to_thread(self._resumable, _given(training_id))
        self._executor.submit(job)
        log.info("training resumed: job_id=%s", job.job_id)
        return as_status(self._store.get(job.job_id))

    def _resumable(self, training_id: str) -> Job:
        job = self._known_or_left_behind(training_id)
        if job.state not in (JobState.ERRORED, JobState.CANCELED):
            raise ConflictError(
                f"training {training_id!r} is {job.state.name}; only one that is ERRORED or "
                "CANCELED can be resumed"
            )
        folder = JobFolder(job.folder)
        if not folder.train_file.is_file():
            raise JobNotFoundError(f"the data of training {training_id!r} is gone")
        require_replaceable(job.spec.model_folder)
        with folder.locked():
            return dataclasses.replace(job, state=JobState.QUEUED, reasons=(), finished_at=None)

    def _known_or_left_behind(self, training_id: str) -> Job:
        """The store's job, or one of a server before this one, of which only the folder is left."""
        try:
            return self._store.get(training_id)
        except JobNotFoundError:
            folder = JobFolder(self._places.jobs_folder / _canonical(training_id))
            if not folder.train_file.is_file():
                raise
            spec, submitted_at = folder.read_spec(), folder.submitted_at
            return Job(training_id, spec, folder.path, JobState.CANCELED, submitted_at)

    def jobs(self) -> tuple[Job, ...]:
        """Every training that the store knows, oldest first."""
        return self._store.list_jobs()

    async def metrics(self, training_id: str) -> list[dict[str, Any]]:
        """What a training has measured so far.

        Args:
            training_id: From ``submit``.

        Returns:
            One object per measured number, in their order.

        Raises:
            JobNotFoundError: If there is no such training.
        """
        job = self._store.get(_given(training_id))
        return await asyncio.to_thread(read_metrics, JobFolder(job.folder).metrics_file)

    def _prepare(self, request: TrainingRequest) -> Job:
        training_id = str(uuid.uuid4())
        model_folder = self._places.model_folder(request, training_id)
        train, validation = self._read(request)
        self._checks.check(request.module_id, request.parameters, train, validation)
        spec = TrainingSpec(
            module_id=request.module_id,
            model_name=request.model_name,
            parameters=request.parameters,
            model_folder=model_folder,
            num_train_records=len(train),
            num_validation_records=len(validation),
        )
        folder = self._places.jobs_folder / training_id
        JobFolder(folder).create(spec, map(record_as_json, train), map(record_as_json, validation))
        return Job(training_id, spec, folder, JobState.QUEUED, datetime.now(UTC))

    def _read(self, request: TrainingRequest) -> tuple[list[StreamRecord], list[StreamRecord]]:
        if request.train_source is None:
            raise TrainingDataError("train_stream cannot be empty")
        limits = self._checks.stream_limits
        # A request's stream says what its module learns: labels of texts, or text to write.
        kind = type(request.train_source).__name__
        keeps_labels = kind == f"DataStreamSource{ClassificationTrainRecord.__name__}"
        train = read_train_records(
            request.train_source, limits, name="train_stream", keeps_labels=keeps_labels
        )
        if not train:
            raise TrainingDataError("train_stream cannot be empty")
        if request.validation_source is None:
            return train, []
        return train, read_train_records(
            request.validation_source, limits, name="val_stream", keeps_labels=keeps_labels
        )


def _canonical(training_id: str) -> str:
    """The id as ``submit`` made it; nothing else names a folder."""
    try:
        return str(uuid.UUID(training_id))
    except ValueError as error:
        raise JobNotFoundError(f"Unknown training_id: {training_id[:80]!r}") from error


def _remove_prepared(preparing: asyncio.Future[Job]) -> None:
    if preparing.exception() is None:
        JobFolder(preparing.result().folder).remove()


def _given(training_id: str) -> str:
    if not training_id:
        raise InvalidInputError("'training_id' must be given")
    return training_id
