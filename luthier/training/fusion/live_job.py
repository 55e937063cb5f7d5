"""A training of a group: its loop, and where it stands in the group's rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch

from luthier.training.fusion.roll import Standing
from luthier.training.job import TuningJob
from luthier.training.learner import MicroBatch
from luthier.training.results import TrainingResult
from luthier.training.run import Steps, TrainingRun

_T = TypeVar("_T")

#: How a training ended: well, or with which error.
Outcome: TypeAlias = TrainingResult | Exception


@dataclass(eq=False)
class LiveJob:
    """A training that was opened.

    Args:
        number: Of the job, from 0.
        job: As it came.
        stack: Closes its callbacks.
        run: Its loop.
        steps: Of the run.
        standing: How it came to the group.
        place: Among the group's members; None as long as that is open.
    """

    number: int
    job: TuningJob
    stack: contextlib.ExitStack
    run: TrainingRun
    steps: Steps
    standing: Standing
    place: int | None = None
    #: The round of the micro-batch that is next in its training.
    goes_on_at: int = 0
    #: The round that it last had a part in.
    last_round: int | None = None
    _next: MicroBatch = field(init=False)
    _replayed: Generator[MicroBatch] | None = field(init=False, default=None)

    @property
    def is_replayed(self) -> bool:
        """Whether its micro-batches were done before, and only count for the others."""
        return self._replayed is not None

    @property
    def micro_batch(self) -> MicroBatch:
        """What is next in its training."""
        return self._next

    def take(self) -> MicroBatch:
        """Its micro-batch of a round, once per round."""
        return self._next if self._replayed is None else next(self._replayed)

    def replay(self, first: int) -> None:
        """Do again what was done before its checkpoint, for the others.

        Args:
            first: Number of the micro-batch to begin with.
        """
        self.stop_replaying()
        self._replayed = self.run.replayed(first, self.standing.num_done)

    def stop_replaying(self) -> None:
        """Ask for no more gradients of what was done before."""
        if self._replayed is not None:
            self._replayed.close()
            self._replayed = None

    def go_on(self, loss_sum: torch.Tensor | None) -> TrainingResult | None:
        """Give it its loss; it updates, evaluates, saves, up to its next micro-batch.

        Args:
            loss_sum: Of ``micro_batch``; None to start.

        Returns:
            Its result, if that was the last.
        """
        self.stop_replaying()
        try:
            self._next = self.steps.send(loss_sum)  # type: ignore[arg-type]  # the first is None
        except StopIteration:
            return self.run.finish()
        return None


def attempt(action: Callable[[], _T]) -> _T | Exception:
    """What the action gives, or the error that it ends with."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001  the job: its error is its outcome
        return error
