"""The training loop, readable top to bottom: one loop for every tuning method.

For each epoch and each window of rows: forward and backward per micro-batch, one update, tell the
callbacks. The loop does not run its micro-batches: it hands each one out and goes on when it is
given the loss. So one caller runs them one after the other (``loop.tune``), and another runs those
of several trainings together (``fused.tune_many``), with one loop for both.

Where several processes train together (``parallel.py``), each goes through this loop with its share
of every window; sums over the processes make losses, gradients and decisions the same in all.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import alog
import torch

from luthier.errors import CancelledError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
)
from luthier.training.callbacks.callback_list import CallbackList
from luthier.training.checkpointing.group_record import GroupRecord
from luthier.training.checkpointing.resuming import Course, StateKeeper
from luthier.training.checkpointing.state import ResumePoint, TrainingState
from luthier.training.data.bucketing import Window, num_batches, num_windows
from luthier.training.data.examples import TrainingData
from luthier.training.data.row_share import RowShare, batch_of
from luthier.training.evaluation.best import BestSoFar
from luthier.training.evaluation.evaluation import is_evaluation_due
from luthier.training.evaluation.evaluator import Evaluator
from luthier.training.evaluation.row_scoring import Generate
from luthier.training.learner import Learner, MicroBatch
from luthier.training.metrics.base import Metric
from luthier.training.optimization.schedule import learning_rate_at
from luthier.training.optimization.updater import Updater
from luthier.training.processes.memory_reuse import memory_kept
from luthier.training.processes.parallel import ALONE, ProcessGroup
from luthier.training.results import LossPoint, TrainingResult
from luthier.training.window_sums import WindowSums

log = alog.use_channel(__name__)

#: Hands out micro-batches. Each is to be run, backward included, and its summed loss sent back.
Steps: TypeAlias = Generator[MicroBatch, torch.Tensor, None]


class TrainingRun:
    """One training from its first micro-batch to its last.

    Args:
        base_model: The frozen base.
        learner: The adapter on it.
        data: Learned from.
        validation: Evaluated, or None.
        metrics: At least one; the first says what is best.
        generate: For metrics that compare texts, or None.
        callbacks: Told what happens.
        should_stop: Asked before every batch.
        started: When its data began to be read, by ``time.monotonic``; None for now.
        group: The processes that train together.
    """

    def __init__(
        self,
        base_model: BaseModel,
        learner: Learner,
        data: TrainingData,
        validation: TrainingData | None,
        *,
        metrics: tuple[Metric, ...],
        generate: Generate | None,
        callbacks: CallbackList,
        should_stop: Callable[[], bool],
        started: float | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        options = learner.options
        self.course = Course(BestSoFar(higher_is_better=metrics[0].higher_is_better))
        self._base_model = base_model
        self.learner = learner
        #: Asked for whom passes are shared with, when a checkpoint is written.
        self.group_record: Callable[[], GroupRecord | None] = _nobody
        #: The same, from the checkpoint that the training goes on from.
        self.group_before: GroupRecord | None = None
        self._data = data
        self._validation = validation
        self._options = options
        self._metrics = metrics
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._started = time.monotonic() if started is None else started
        self._group = group
        self._updater = Updater(learner.adapter, options, shares=learner.network.learned_shares)
        self._keeper = StateKeeper(
            base_model, learner.adapter, data, validation, options=options, updater=self._updater
        )
        self._sums = WindowSums(self._updater, loss_function=options.loss_function, group=group)
        self._share = RowShare(base_model, options, group=group)
        self._evaluator = (
            None
            if validation is None
            else Evaluator(
                base_model,
                learner.network,
                validation,
                metrics=metrics,
                generate=generate,
                share=self._share,
                group=group,
                before_batch=self._stop_if_asked,
            )
        )
        self._lengths = data.lengths
        self._updates_per_epoch = num_windows(
            len(data), batch_size=options.batch_size, accumulate_steps=options.accumulate_steps
        )
        self._num_steps = options.num_epochs * self._updates_per_epoch
        self._batches_per_epoch = num_batches(
            len(data),
            batch_size=options.batch_size,
            accumulate_steps=options.accumulate_steps,
            num_processes=group.num_processes,
        )

    @property
    def is_stopped_early(self) -> bool:
        """Whether too many evaluations brought nothing better."""
        patience = self._options.early_stopping_patience
        return 0 < patience <= self.course.best.num_evaluations_since

    def steps(self) -> Generator[MicroBatch, torch.Tensor, None]:
        """All epochs: the loop itself.

        Yields:
            Micro-batches; gradients are asked for from the first to the last.
        """
        self._agree()
        self._tell_start()
        if self._options.evaluate_before_training and not self.course.evaluations:
            self._evaluate()
        keeping = contextlib.nullcontext() if self._options.use_fsdp else memory_kept()
        with self._updater.requiring_gradients(), keeping:
            while not self.is_done:
                yield from self._epoch()
        self.course.best.put_back(self._updater.learned)
        self._updater.put_together(is_main=self._group.is_main)

    def replayed(self, first: int, stop: int) -> Generator[MicroBatch]:
        """Micro-batches that were done before, with the same rows; nothing is learned from them.

        Args:
            first: Number of the first, from 0 in the whole training.
            stop: The number after the last.

        Yields:
            Each; gradients are asked for meanwhile, and dropped before the next.
        """
        with self._updater.requiring_gradients():
            for epoch in itertools.count(first // self._batches_per_epoch):
                batches = [
                    batch
                    for window in self._share.windows(self._lengths, epoch=epoch)
                    for batch in window
                ]
                for number, rows in enumerate(batches, start=epoch * self._batches_per_epoch):
                    if number >= stop:
                        return
                    if number >= first:
                        batch = batch_of(rows, self._data, self._base_model, epoch=epoch)
                        yield MicroBatch(self.learner, batch, 1.0, number)
                        self._updater.clear()

    def mark(self) -> str:
        """A hash of what this training is of, the same when it is resumed."""
        return self._keeper.mark()

    def restore(self, state: TrainingState, checkpoint: Path) -> None:
        """Take up the training that ``state`` is of.

        Args:
            state: Read from ``checkpoint``.
            checkpoint: For messages, and what else lies there.

        Raises:
            ConflictError: If it is of another training.
        """
        higher_is_better = self._metrics[0].higher_is_better
        self.course = self._keeper.restore(state, checkpoint, higher_is_better=higher_is_better)
        self.group_before = state.group

    def finish(self) -> TrainingResult:
        """Say how it went, to the callbacks too; after the last step."""
        data, validation, done = self._data, self._validation, self.course.progress
        result = TrainingResult(
            losses=tuple(self.course.losses),
            validation_losses=tuple(self.course.evaluations),
            truncation=data.truncation,
            validation_truncation=validation.truncation if validation else None,
            num_rows=len(data),
            num_steps=done.step,
            num_input_tokens=done.num_input_tokens,
            num_label_tokens=done.num_label_tokens,
            seed=self._options.seed,
            seconds=time.monotonic() - self._started,
            best_step=self.course.best.step,
            is_stopped_early=self.is_stopped_early,
        )
        self._callbacks.on_finish(result)
        return result

    def _agree(self) -> None:
        """Start from the same data and numbers in every process."""
        if not self._group.is_alone:
            self._group.require_same(self._keeper.marks())
            self._updater.copy_from_main(self._group)

    @property
    def is_done(self) -> bool:
        """Whether no update is left to make."""
        return self.course.progress.epoch >= self._options.num_epochs or self.is_stopped_early

    def _epoch(self) -> Steps:
        """One pass over the data, or what is left of it."""
        done = self.course.progress
        started = time.monotonic()
        windows = self._share.windows(self._lengths, epoch=done.epoch)
        for window in windows[done.windows_done :]:
            yield from self._window(window)
            done.windows_done += 1
            is_evaluation_point = is_evaluation_due(
                done.step,
                num_updates=self._num_steps,
                updates_per_epoch=self._updates_per_epoch,
                evaluation_epochs=self._options.evaluation_epochs,
            )
            if is_evaluation_point:
                self._evaluate()
            is_epoch_end = done.windows_done == len(windows)
            if is_epoch_end:
                self._end_epoch(time.monotonic() - started)
            self._tell_resume_point(
                is_evaluation_point=is_evaluation_point, is_epoch_end=is_epoch_end
            )
            if self.is_stopped_early:
                return

    def _end_epoch(self, seconds: float) -> None:
        done = self.course.progress
        mean = done.epoch_loss / done.epoch_num_units
        event = EpochEvent(done.epoch, done.step, mean, seconds)
        self._callbacks.on_epoch_end(event)
        done.epoch += 1
        done.windows_done = done.epoch_num_units = 0
        done.epoch_loss = 0.0

    def _window(self, window: Window) -> Steps:
        """One update from one window: its micro-batches, then clip, schedule and optimizer."""
        started, done = time.monotonic(), self.course.progress
        step = done.step + 1
        batches = [self._share.batch(rows, self._data, epoch=done.epoch) for rows in window]
        counts = self._sums.counts([batch for batch in batches if batch is not None], step=step)
        units = counts.units / self._updater.loss_scale.value
        micro_batches = []
        loss_sums = []
        for batch in batches:
            self._stop_if_asked()
            if batch is not None:
                number = self._group.process + done.num_batches * self._group.num_processes
                micro_batches.append(MicroBatch(self.learner, batch, units, number))
                loss_sums.append((yield micro_batches[-1]))
            self._tell_batch()
        loss_sum = self._sums.loss(loss_sums, micro_batches, step=step)
        gradient_norm = self._sums.gradient_norm(micro_batches, step=step)
        learning_rate = learning_rate_at(
            done.step,
            num_updates=self._num_steps,
            options=self._options,
            updates_per_epoch=self._updates_per_epoch,
        )
        if gradient_norm is None:
            self._updater.clear()
        else:
            self._updater.update(learning_rate, gradient_norm)

        done.step = step
        loss = loss_sum / counts.units
        done.epoch_loss += loss * counts.units
        done.epoch_num_units += counts.units
        done.num_input_tokens += counts.input_tokens
        done.num_label_tokens += counts.label_tokens
        point = LossPoint(done.epoch, done.step, loss, learning_rate, datetime.now(UTC))
        self.course.losses.append(point)
        event = StepEvent(
            epoch=done.epoch,
            step=done.step,
            loss=loss,
            learning_rate=learning_rate,
            num_rows=counts.rows,
            num_input_tokens=counts.input_tokens,
            num_label_tokens=counts.label_tokens,
            seconds=time.monotonic() - started,
            gradient_norm=gradient_norm,
        )
        self._callbacks.on_step(event)

    def _evaluate(self) -> None:
        """All metrics over the validation data, if there is any."""
        if self._evaluator is None:
            return
        done, best = self.course.progress, self.course.best
        evaluation = self._evaluator.evaluate(epoch=done.epoch, step=done.step)
        self.course.evaluations.append(evaluation.point)
        best.look_at(evaluation.value, step=done.step)
        if best.is_at(done.step) and self._options.save_checkpoint == "best":
            best.keep(self._updater.learned)
        self._callbacks.on_evaluation(evaluation.point)
        self._callbacks.on_scored_rows(evaluation)

    def _stop_if_asked(self) -> None:
        if self._group.any(self._should_stop()):
            step = self.course.progress.step
            raise CancelledError(f"training was cancelled after {step} updates")

    def _tell_start(self) -> None:
        options, done = self._options, self.course.progress
        event = StartEvent(
            options=options,
            num_rows=len(self._data),
            num_steps=self._num_steps,
            num_batches=options.num_epochs * self._batches_per_epoch,
            num_trainable=self._updater.num_trainable,
            truncation=self._data.truncation,
            first_step=done.step,
            first_batch=done.num_batches,
            first_epoch=done.epoch,
        )
        log.info(
            "training starts: method=%s rows=%d steps=%d batch_size=%d trainable=%d",
            self.learner.adapter.method,
            event.num_rows,
            self._num_steps,
            options.batch_size,
            event.num_trainable,
        )
        self._callbacks.on_start(event)

    def _tell_batch(self) -> None:
        done = self.course.progress
        done.num_batches += 1
        event = BatchEvent(done.epoch, done.num_batches)
        self._callbacks.on_batch(event)

    def _tell_resume_point(self, *, is_evaluation_point: bool, is_epoch_end: bool) -> None:
        point = ResumePoint(
            step=self.course.progress.step,
            is_evaluation_point=is_evaluation_point,
            is_epoch_end=is_epoch_end,
            is_last=self.is_done,
            best_step=self.course.best.step,
            capture=lambda: self._keeper.capture(self.course, group=self.group_record()),
        )
        self._callbacks.on_resume_point(point)


def _nobody() -> None:
    """Passes are shared with nobody."""
