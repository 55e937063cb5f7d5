"""Generation in the background: start now, ask later."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from caikit.core.data_model import JobStatus
from caikit.interfaces.runtime.data_model import PredictionJob, PredictionJobStatusResponse

from luthier.errors import CapacityError, ConflictError, JobNotFoundError
from luthier.runtime.errors import problem_of


@dataclass
class _Prediction:
    prediction_id: str
    task: asyncio.Task[Any]
    submitted_at: datetime
    finished_at: datetime | None = None
    error: str = ""

    @property
    def state(self) -> JobStatus:
        if not self.task.done():
            return JobStatus.RUNNING
        if self.task.cancelled():
            return JobStatus.CANCELED
        return JobStatus.ERRORED if self.task.exception() else JobStatus.COMPLETED


class PredictionJobsService:
    """Runs inference calls as tasks and keeps their results in memory. Lives on one event loop.

    Args:
        max_running: Jobs at the same time; more are refused.
        max_finished: Ended jobs whose results are kept; the oldest are forgotten beyond it.
    """

    def __init__(self, *, max_running: int = 1000, max_finished: int = 1000) -> None:
        self._max_running = max_running
        self._max_finished = max_finished
        self._predictions: OrderedDict[str, _Prediction] = OrderedDict()

    def start(self, work: Awaitable[Any]) -> PredictionJob:
        """Run a call in the background.

        Args:
            work: An inference call that was not awaited yet.

        Returns:
            The job's id.

        Raises:
            CapacityError: If too many run.
        """
        running = [entry for entry in self._predictions.values() if not entry.task.done()]
        task = asyncio.ensure_future(work)
        if len(running) >= self._max_running:
            task.cancel()
            raise CapacityError(f"{len(running)} prediction jobs run, no more may")
        prediction = _Prediction(str(uuid.uuid4()), task, datetime.now(UTC))
        self._predictions[prediction.prediction_id] = prediction
        task.add_done_callback(lambda _: self._finish(prediction))
        return PredictionJob(prediction.prediction_id)

    def status(self, prediction_id: str) -> PredictionJobStatusResponse:
        """Where a job stands.

        Args:
            prediction_id: From ``start``.

        Returns:
            Its state, times and, if it failed, the reason.

        Raises:
            JobNotFoundError: If there is no such job.
        """
        prediction = self._get(prediction_id)
        return PredictionJobStatusResponse(
            prediction_id=prediction_id,
            state=prediction.state,
            submission_timestamp=prediction.submitted_at,
            completion_timestamp=prediction.finished_at,
            reasons=[prediction.error] if prediction.error else [],
        )

    def result(self, prediction_id: str) -> Any:
        """What a completed job made.

        Args:
            prediction_id: From ``start``.

        Returns:
            What the inference call returned.

        Raises:
            JobNotFoundError: If there is no such job.
            ConflictError: If it is not completed.
            LuthierError: If it failed, what it failed with.
        """
        prediction = self._get(prediction_id)
        if prediction.state is JobStatus.ERRORED:
            return prediction.task.result()
        if prediction.state is not JobStatus.COMPLETED:
            raise ConflictError(
                f"prediction {prediction_id!r} is {prediction.state.name}, not COMPLETED"
            )
        return prediction.task.result()

    async def cancel(self, prediction_id: str) -> PredictionJobStatusResponse:
        """Stop a job; one that has ended stays as it is.

        Args:
            prediction_id: From ``start``.

        Returns:
            Its state afterwards.

        Raises:
            JobNotFoundError: If there is no such job.
        """
        prediction = self._get(prediction_id)
        prediction.task.cancel()
        await asyncio.wait([prediction.task])
        return self.status(prediction_id)

    async def close(self) -> None:
        """Cancel every job that runs. Idempotent."""
        tasks = [entry.task for entry in self._predictions.values() if not entry.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _get(self, prediction_id: str) -> _Prediction:
        prediction = self._predictions.get(prediction_id)
        if prediction is None:
            raise JobNotFoundError(f"Unknown prediction_id: {prediction_id[:80]!r}")
        return prediction

    def _finish(self, prediction: _Prediction) -> None:
        prediction.finished_at = datetime.now(UTC)
        if not prediction.task.cancelled() and (error := prediction.task.exception()):
            problem = problem_of(error)
            prediction.error = f"{problem.word}: {problem.details}"
        finished = [key for key, entry in self._predictions.items() if entry.task.done()]
        for key in finished[: max(0, len(finished) - self._max_finished)]:
            del self._predictions[key]
