"""All who watch a training, as one callback."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.checkpointing.state import ResumePoint
from luthier.training.evaluation.evaluation import Evaluation
from luthier.training.results import EvaluationPoint, TrainingResult


class CallbackList(TrainingCallback):
    """Tells each of several callbacks, in their order.

    Args:
        callbacks: May be none.
    """

    def __init__(self, callbacks: Sequence[TrainingCallback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_start(self, event: StartEvent) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_start(event)

    def on_batch(self, event: BatchEvent) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_batch(event)

    def on_step(self, event: StepEvent) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_step(event)

    def on_evaluation(self, point: EvaluationPoint) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_evaluation(point)

    def on_scored_rows(self, evaluation: Evaluation) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_scored_rows(evaluation)

    def on_epoch_end(self, event: EpochEvent) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_epoch_end(event)

    def on_resume_point(self, point: ResumePoint) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_resume_point(point)

    def on_finish(self, result: TrainingResult) -> None:
        """See ``TrainingCallback``."""
        for callback in self._callbacks:
            callback.on_finish(result)

    def close(self) -> None:
        """Close each, the last first; an error of one does not keep the others open."""
        with contextlib.ExitStack() as stack:
            for callback in self._callbacks:
                stack.callback(callback.close)
