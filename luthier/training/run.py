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
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, TypeAlias

import alog
import torch

from luthier.errors import CancelledError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.checkpointing.resuming import Course, StateKeeper
from luthier.training.checkpointing.state import ResumePoint, TrainingState
from luthier.training.data.bucketing import (
    Batch,
    Window,
    deal_window,
    num_batches,
    num_windows,
    plan_epoch,
    plan_evaluation,
)
from luthier.training.data.collation import TokenBatch, collate, idle_batch
from luthier.training.data.examples import MAX_LISTED_ROWS, TrainingData
from luthier.training.evaluation.best import BestSoFar
from luthier.training.evaluation.evaluation import evaluate_rows, is_evaluation_due
from luthier.training.evaluation.row_scoring import Generate, score_rows, with_texts
from luthier.training.learner import Learner, MicroBatch
from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.objective import num_units
from luthier.training.optimization.schedule import learning_rate_at
from luthier.training.optimization.updater import Updater
from luthier.training.processes.memory_reuse import memory_kept
from luthier.training.processes.parallel import ALONE, ProcessGroup
from luthier.training.results import LossPoint, TrainingResult

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
        callbacks: Sequence[TrainingCallback],
        should_stop: Callable[[], bool],
        started: float | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        options = learner.options
        self.course = Course(BestSoFar(higher_is_better=metrics[0].higher_is_better))
        self._base_model = base_model
        self.learner = learner
        self._data = data
        self._validation = validation
        self._options = options
        self._metrics = metrics
        self._generate = generate if any(metric.needs_text for metric in metrics) else None
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._started = time.monotonic() if started is None else started
        self._group = group
        self._updater = Updater(learner.adapter, options, shares=learner.network.learned_shares)
        self._keeper = StateKeeper(
            base_model, learner.adapter, data, validation, options=options, updater=self._updater
        )
        self._lengths = data.lengths
        self._updates_per_epoch = num_windows(
            len(data), batch_size=options.batch_size, accumulate_steps=options.accumulate_steps
        )
        self._num_steps = options.num_epochs * self._updates_per_epoch

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
            while not self._is_done:
                yield from self._epoch()
        self.course.best.put_back(self._updater.learned)
        self._updater.put_together(is_main=self._group.is_main)

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
        for callback in self._callbacks:
            callback.on_finish(result)
        return result

    def _agree(self) -> None:
        """Start from the same data and numbers in every process."""
        if not self._group.is_alone:
            self._group.require_same(self._keeper.marks())
            self._updater.copy_from_main(self._group)

    @property
    def _is_done(self) -> bool:
        return self.course.progress.epoch >= self._options.num_epochs or self.is_stopped_early

    def _epoch(self) -> Steps:
        """One pass over the data, or what is left of it."""
        done = self.course.progress
        started, windows = time.monotonic(), self._plan(done.epoch)
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
        for callback in self._callbacks:
            callback.on_epoch_end(event)
        done.epoch += 1
        done.windows_done = done.epoch_num_units = 0
        done.epoch_loss = 0.0

    def _window(self, window: Window) -> Steps:
        """One update from one window: its micro-batches, then clip, schedule and optimizer."""
        started, done = time.monotonic(), self.course.progress
        batches = [self._own_batch(rows, self._data) for rows in window]
        counts = self._count([batch for batch in batches if batch is not None])
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
        loss_sum = self._finite_loss(loss_sums, micro_batches)
        gradient_norm = self._finite_gradient_norm(micro_batches)
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

        done.step += 1
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
        for callback in self._callbacks:
            callback.on_step(event)

    def _count(self, batches: Sequence[TokenBatch]) -> _WindowCounts:
        """What all processes together learn from in one update."""
        loss_function = self._options.loss_function
        own = (
            sum(num_units(batch, loss_function) for batch in batches),
            sum(len(batch.rows) for batch in batches),
            sum(batch.num_input_tokens for batch in batches),
            sum(batch.num_label_tokens for batch in batches),
        )
        counts = _WindowCounts(*map(int, self._group.sum(own)))
        if counts.units == 0:
            rows = self._group.gather([row for batch in batches for row in batch.rows])
            step = self.course.progress.step + 1
            raise TrainingFailedError(f"step {step}: no label token in {_named(rows)}")
        return counts

    def _evaluate(self) -> None:
        """All metrics over the validation data, if there is any."""
        data = self._validation
        if data is None:
            return
        rows: list[ScoredRow] = []
        network = self.learner.network
        with network.evaluating():
            for indices in self._evaluation_share(data):
                self._stop_if_asked()
                batch = self._own_batch(indices, data)
                if batch is not None:
                    rows += score_rows(network, batch)
        own = with_texts(
            rows,
            data,
            self._base_model.tokenizer,
            is_seq2seq=self._base_model.kind == "seq2seq",
            generate=self._generate,
        )
        done, best = self.course.progress, self.course.best
        evaluation = evaluate_rows(
            self._scored_by_all(own), self._metrics, epoch=done.epoch, step=done.step
        )
        self.course.evaluations.append(evaluation.point)
        best.look_at(evaluation.value, step=done.step)
        if best.is_at(done.step) and self._options.save_checkpoint == "best":
            best.keep(self._updater.learned)
        for callback in self._callbacks:
            callback.on_evaluation(evaluation.point)
            callback.on_scored_rows(evaluation)

    def _evaluation_share(self, data: TrainingData) -> list[Batch]:
        """This process's batches; as many in every process, the last may be empty."""
        batches = plan_evaluation(data.lengths, batch_size=self._options.batch_size)
        own = batches[self._group.process :: self._group.num_processes]
        return own + [[]] * (-(-len(batches) // self._group.num_processes) - len(own))

    def _scored_by_all(self, own: tuple[ScoredRow, ...]) -> tuple[ScoredRow, ...]:
        """The rows that all processes scored, in the order of the records."""
        if self._group.is_alone:
            return own
        rows = [
            ScoredRow(**values) for values in self._group.gather([asdict(scored) for scored in own])
        ]
        return tuple(sorted(rows, key=lambda scored: scored.row))

    def _finite_loss(
        self, loss_sums: Sequence[torch.Tensor], micro_batches: Sequence[MicroBatch]
    ) -> float:
        """The losses of all processes, summed; refuses to update from what is no number."""
        values = torch.stack(list(loss_sums)).tolist() if loss_sums else []
        bad = [
            row
            for each, value in zip(micro_batches, values, strict=True)
            if not math.isfinite(value)
            for row in each.batch.rows
        ]
        (loss_sum,) = self._group.sum([sum(values)])
        if not math.isfinite(loss_sum):
            self._updater.clear()
            raise TrainingFailedError(
                f"step {self.course.progress.step + 1}: the loss is not finite in "
                f"{_named(self._group.gather(bad))}; a lower learning_rate or another torch_dtype "
                "may help"
            )
        return loss_sum

    def _finite_gradient_norm(self, micro_batches: Sequence[MicroBatch]) -> float | None:
        """The norm of the update's gradient; refuses to update from what is no number. None if the
        loss's scale was too large, which it is not any more."""
        self._updater.sum_gradients(self._group)
        norm = self._updater.gradient_norm()
        if math.isfinite(norm):
            return norm
        if not self._updater.loss_scale.lower():
            self._refuse_gradient(micro_batches)
        return None

    def _refuse_gradient(self, micro_batches: Sequence[MicroBatch]) -> NoReturn:
        """Name the rows whose gradient is no number: the batches are run again, one by one."""
        bad: list[int] = []
        for micro_batch in micro_batches:
            self._updater.clear()
            micro_batch.backward()
            if not math.isfinite(self._updater.gradient_norm()):
                bad += micro_batch.batch.rows
        self._updater.clear()
        everything = [row for each in micro_batches for row in each.batch.rows]
        named = _named(self._group.gather(bad) or self._group.gather(everything))
        raise TrainingFailedError(
            f"step {self.course.progress.step + 1}: the gradient is not finite in "
            f"{named}; a lower learning_rate or another torch_dtype may help"
        )

    def _plan(self, epoch: int) -> list[Window]:
        """This process's share of each window of one pass."""
        windows = plan_epoch(
            self._lengths,
            batch_size=self._options.batch_size,
            accumulate_steps=self._options.accumulate_steps,
            seed=self._options.seed,
            epoch=epoch,
            group_by_length=self._options.group_by_length,
        )
        return [
            deal_window(
                window,
                self._lengths,
                batch_size=self._options.batch_size,
                process=self._group.process,
                num_processes=self._group.num_processes,
            )
            for window in windows
        ]

    def _collate(self, rows: Sequence[int], data: TrainingData) -> TokenBatch:
        return collate(
            data.batch(rows, epoch=self.course.progress.epoch),
            pad_token_id=self._base_model.pad_token_id,
            is_seq2seq=self._base_model.kind == "seq2seq",
            device=self._base_model.device,
        )

    def _own_batch(self, rows: Sequence[int], data: TrainingData) -> TokenBatch | None:
        """The batch of some rows. Where there are none, the others still need this process's share
        of the weights: then it is one without rows or labels; else None."""
        if rows:
            return self._collate(rows, data)
        return idle_batch(self._collate([0], data)) if self._options.use_fsdp else None

    def _stop_if_asked(self) -> None:
        if self._group.any(self._should_stop()):
            step = self.course.progress.step
            raise CancelledError(f"training was cancelled after {step} updates")

    def _tell_start(self) -> None:
        options, done = self._options, self.course.progress
        batches_per_epoch = num_batches(
            len(self._data),
            batch_size=options.batch_size,
            accumulate_steps=options.accumulate_steps,
            num_processes=self._group.num_processes,
        )
        event = StartEvent(
            options=options,
            num_rows=len(self._data),
            num_steps=self._num_steps,
            num_batches=options.num_epochs * batches_per_epoch,
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
        for callback in self._callbacks:
            callback.on_start(event)

    def _tell_batch(self) -> None:
        done = self.course.progress
        done.num_batches += 1
        event = BatchEvent(done.epoch, done.num_batches)
        for callback in self._callbacks:
            callback.on_batch(event)

    def _tell_resume_point(self, *, is_evaluation_point: bool, is_epoch_end: bool) -> None:
        point = ResumePoint(
            step=self.course.progress.step,
            is_evaluation_point=is_evaluation_point,
            is_epoch_end=is_epoch_end,
            is_last=self._is_done,
            best_step=self.course.best.step,
            capture=lambda: self._keeper.capture(self.course),
        )
        for callback in self._callbacks:
            callback.on_resume_point(point)


@dataclass(frozen=True)
class _WindowCounts:
    """What an update learns from, in all processes together."""

    units: int
    rows: int
    input_tokens: int
    label_tokens: int


def _named(rows: Sequence[int]) -> str:
    """The rows of a message: numbers of the first few."""
    listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS]))
    more = len(rows) - MAX_LISTED_ROWS
    return f"rows {listed} and {more} more" if more > 0 else f"rows {listed}"
