"""The contract between the loop and whoever watches it.

A callback is told what happened; it changes nothing of the training. It is called in the thread of
the loop, so what it does costs training time::

    on_start
      on_batch                  after each batch went forward and backward
      on_step                   after each update of the parameters
      on_evaluation             after each pass over the validation data; may come first of all
      on_scored_rows            the same, row by row
      on_epoch_end
      on_resume_point           after all that belongs to an update: the state may be copied
    on_finish                   only if the training came to its end
    close                       always and last: success, error or cancellation

Callbacks are called in the order in which they were given. An error of a callback ends the
training, like any other error; one that must never do so keeps its errors to itself. To stop a
training use ``should_stop`` of ``tune``.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.training_options import TrainingOptions
from luthier.training.checkpointing.state import ResumePoint
from luthier.training.data.examples import TruncationReport
from luthier.training.evaluation.evaluation import Evaluation
from luthier.training.results import EvaluationPoint, TrainingResult


@dataclass(frozen=True)
class StartEvent:
    """The plan, before the first batch.

    Args:
        options: In use; the seed is never -1.
        num_rows: Training rows per epoch.
        num_steps: Updates that will be made.
        num_batches: Batches that will go through the model.
        num_trainable: Numbers that are learned.
        truncation: What was cut from the training data.
        first_step: Updates that were done before, by the training that this one goes on with.
        first_batch: Batches likewise.
        first_epoch: Passes likewise.
    """

    options: TrainingOptions
    num_rows: int
    num_steps: int
    num_batches: int
    num_trainable: int
    truncation: TruncationReport
    first_step: int = 0
    first_batch: int = 0
    first_epoch: int = 0


@dataclass(frozen=True)
class BatchEvent:
    """One batch went forward and backward.

    Args:
        epoch: From 0.
        batch: Number in the whole training, from 1.
    """

    epoch: int
    batch: int


@dataclass(frozen=True)
class StepEvent:
    """One update was made.

    Args:
        epoch: From 0.
        step: Number in the whole training, from 1.
        loss: Mean over the update's label tokens, or over its rows for a sample average, before
            the update.
        learning_rate: Used for the update.
        num_rows: Of the update.
        num_input_tokens: Of the update, without padding and virtual tokens.
        num_label_tokens: Of the update.
        seconds: Wall time of the update.
        gradient_norm: Euclidean, of all gradients together, before a clip; None if a gradient
            overflowed in fp16, so that this update changed nothing.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    num_rows: int
    num_input_tokens: int
    num_label_tokens: int
    seconds: float
    gradient_norm: float | None = 0.0


@dataclass(frozen=True)
class EpochEvent:
    """One pass over the training data ended.

    Args:
        epoch: From 0.
        step: Updates done so far.
        loss: Mean over the epoch's label tokens, or rows, each before its own update.
        seconds: Wall time of the pass, without evaluation.
    """

    epoch: int
    step: int
    loss: float
    seconds: float


class TrainingCallback:
    """Watches a training. Every method does nothing until a subclass says what."""

    def on_start(self, event: StartEvent) -> None:
        """The data is read and the plan made."""

    def on_batch(self, event: BatchEvent) -> None:
        """A batch is done. Called often: keep it cheap."""

    def on_step(self, event: StepEvent) -> None:
        """An update is done."""

    def on_evaluation(self, point: EvaluationPoint) -> None:
        """The validation loss and the other metrics are known."""

    def on_scored_rows(self, evaluation: Evaluation) -> None:
        """What the model made of each validation row; comes with each ``on_evaluation``."""

    def on_epoch_end(self, event: EpochEvent) -> None:
        """A pass is done; comes after its evaluation."""

    def on_resume_point(self, point: ResumePoint) -> None:
        """All that belongs to an update is done; a copy of the state can be taken now."""

    def on_finish(self, result: TrainingResult) -> None:
        """The training came to its end."""

    def close(self) -> None:
        """Nothing comes after this. Called once, whatever happened."""
