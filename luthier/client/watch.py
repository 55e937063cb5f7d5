"""Waiting until a training has completed, look by look."""

from __future__ import annotations

import time
from collections.abc import Callable

from luthier.client.results import JobState, TrainingMetric, TrainingStatus
from luthier.errors import CancelledError, TrainingFailedError

POLL_SECONDS = 0.5

#: Called while a training is waited for: its status, and every metric since the last call.
ProgressCallback = Callable[[TrainingStatus, list[TrainingMetric]], None]


class Watch:
    """Waits for one training: what is done at each look, and when it is over.

    Args:
        training_id: Which one.
        on_progress: Called after every look; gets the metrics that are new.
        timeout_seconds: Give up waiting after this; None never does.
    """

    def __init__(
        self,
        training_id: str,
        *,
        on_progress: ProgressCallback | None,
        timeout_seconds: float | None,
    ) -> None:
        self._training_id = training_id
        self._on_progress = on_progress
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._num_seen = 0

    @property
    def wants_metrics(self) -> bool:
        """Whether a look needs the training's metrics."""
        return self._on_progress is not None

    def look(self, status: TrainingStatus, metrics: list[TrainingMetric]) -> bool:
        """Take in how the training stands now.

        Args:
            status: The server's.
            metrics: All so far; empty where they are not wanted.

        Returns:
            Whether it has completed.

        Raises:
            TrainingFailedError: If it ended ERRORED, with the server's reasons.
            CancelledError: If somebody cancelled it.
            TimeoutError: If it has not ended in time.
        """
        if self._on_progress is not None:
            self._on_progress(status, metrics[self._num_seen :])
            self._num_seen = len(metrics)
        if status.state.is_final:
            _require_completed(status)
            return True
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError(f"training '{self._training_id}' still is {status.state}")
        return False


def _require_completed(status: TrainingStatus) -> None:
    if status.state is JobState.ERRORED:
        reasons = "; ".join(status.reasons) or "the server gives no reason"
        raise TrainingFailedError(f"training '{status.training_id}' failed: {reasons}")
    if status.state is JobState.CANCELED:
        raise CancelledError(f"training '{status.training_id}' was cancelled")
