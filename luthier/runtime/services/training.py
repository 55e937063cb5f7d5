"""Trainings: check all that can be known now, then queue; look at, cancel and list them."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alog
from caikit.core.data_model import JobStatus
from caikit.interfaces.common.data_model.stream_sources import S3Path
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
    NameNotAllowedError,
    NotSupportedError,
    TrainingDataError,
)
from luthier.files.atomic_folder import require_replaceable
from luthier.files.names import check_name, is_inside, resolve_inside
from luthier.runtime.folders import HIDDEN_PREFIX
from luthier.runtime.jobs.base import Job, JobExecutor, JobState, JobStore, TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.registry.model_folder import CONFIG_FILE, ModelsDir
from luthier.runtime.services.training_metrics import read_metrics

log = alog.use_channel(__name__)

JOBS_FOLDER = f"{HIDDEN_PREFIX}jobs"


@dataclass(frozen=True)
class TrainingRequest:
    """A training as a door decoded it.

    Args:
        module_id: The module to train.
        model_name: Name that the tuned model gets.
        parameters: What the request set of the module's train parameters, in JSON's words, without
            the data.
        train_source: caikit's ``DataStreamSource…``, or None.
        validation_source: Likewise.
        output_path: Where to save it, or None for the usual place.
    """

    module_id: str
    model_name: str
    parameters: Mapping[str, Any]
    train_source: Any
    validation_source: Any = None
    output_path: S3Path | None = None


@dataclass(frozen=True)
class TrainingPlaces:
    """Where trainings put what they make.

    Args:
        output_dir: Tuned models; must exist.
        save_with_id: Save as ``<output_dir>/<training id>/<model name>``.
        served: The models that are served, if ``output_dir`` is their folder.
        max_model_name_chars: Longest model name.
    """

    output_dir: Path
    save_with_id: bool = False
    served: ModelsDir | None = None
    max_model_name_chars: int = 128

    @property
    def jobs_folder(self) -> Path:
        """Where jobs have their folders."""
        return self.output_dir / JOBS_FOLDER

    def model_folder(self, request: TrainingRequest, training_id: str) -> Path:
        """Final place of the tuned model.

        Args:
            request: Names the model and maybe a place.
            training_id: Of the training.

        Returns:
            A folder below ``output_dir``.

        Raises:
            NameNotAllowedError: If the model's name or the place leaves ``output_dir``.
            NotSupportedError: If the place is on S3.
            ConflictError: If the name differs from a served model's in case alone, the place is
                inside a model, or what is there is none and would be lost.
        """
        target = self._target(request, training_id)
        require_replaceable(target)
        return target

    def _target(self, request: TrainingRequest, training_id: str) -> Path:
        name = check_name(request.model_name, what="model_name", max_parts=1)
        if len(name) > self.max_model_name_chars:
            raise NameNotAllowedError(
                f"model_name has {len(name)} characters, "
                f"at most {self.max_model_name_chars} are allowed"
            )
        root = self._root(request.output_path)
        if self.save_with_id:
            return root / training_id / name
        if self.served is not None and root == self.output_dir:
            self.served.require_no_lookalike(name)
        return root / name

    def _root(self, output_path: S3Path | None) -> Path:
        if output_path is None:
            return self.output_dir
        given = {name for name in S3Path.fields if getattr(output_path, name)}
        if not given:
            return self.output_dir
        if given != {"path"}:
            raise NotSupportedError(
                "'output_path' names S3 storage, which is not offered; leave it out, or give "
                "a 'path' below the server's output_dir alone"
            )
        root = resolve_inside(self.output_dir, output_path.path, what="output_path")
        folder = self.output_dir
        for part in Path(output_path.path).parts:
            folder /= part
            if (folder / CONFIG_FILE).exists():
                raise ConflictError(
                    f"'output_path' {output_path.path!r} is inside the model {folder.name!r}; "
                    "name another place"
                )
        return root


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


def as_status(job: Job) -> TrainingStatusResponse:
    """A job in the words of the wire.

    Args:
        job: Any job.

    Returns:
        caikit's data object.
    """
    return TrainingStatusResponse(
        training_id=job.job_id,
        state=JobStatus[job.state.name],
        submission_timestamp=job.submitted_at,
        completion_timestamp=job.finished_at,
        reasons=[*job.reasons, *_remarks(job)],
    )


def _remarks(job: Job) -> list[str]:
    """What a caller would not expect of a training that is complete."""
    output_dir = job.folder.parent.parent
    place = job.spec.model_folder
    if job.state is not JobState.COMPLETED or place.parent == output_dir:
        return []
    name = place.relative_to(output_dir).as_posix() if is_inside(place, output_dir) else place.name
    return [f"saved as {name!r} in the server's output_dir; models in folders there are not served"]


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
