"""The training loop, readable top to bottom: one loop for every tuning method.

``tune`` reads the data, then for each epoch and each window of rows: forward and backward per
batch, one update, tell the callbacks. Everything random is drawn from the seed by generators of its
own; torch's global ones are left alone unless the base model's dropout was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.data_model.dataset_options import DatasetOptions
from luthier.data_model.training_options import TrainingOptions
from luthier.errors import CancelledError, ConflictError, InvalidInputError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.best import BestSoFar
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.callbacks.checkpoint_writer import CheckpointWriter
from luthier.training.callbacks.predictions_file import PREDICTIONS_FOLDER, PredictionsFile
from luthier.training.callbacks.progress_bar import ProgressBar
from luthier.training.callbacks.tracker_feed import TrackerFeed
from luthier.training.checkpoints import expected_content_hash, find_checkpoint, read_checkpoint
from luthier.training.data.bucketing import (
    Window,
    num_batches,
    num_windows,
    plan_epoch,
    plan_evaluation,
)
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import MAX_LISTED_ROWS, TrainingData
from luthier.training.data.tokenization import TrainRecord
from luthier.training.embedding_noise import EmbeddingNoise, embedding_noise_of
from luthier.training.evaluation import (
    Generate,
    evaluate_rows,
    is_evaluation_due,
    score_rows,
    with_texts,
)
from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.metrics.registry import make_metrics
from luthier.training.network import TrainingNetwork
from luthier.training.objective import label_weights, num_units
from luthier.training.optimization import learning_rate_at
from luthier.training.preparation import read_data, settle_options
from luthier.training.results import EvaluationPoint, LossPoint, TrainingResult
from luthier.training.run_fingerprint import RunFingerprint, fingerprint_run
from luthier.training.state import Progress, ResumePoint, TrainingState, copied
from luthier.training.trackers.registry import make_trackers
from luthier.training.updater import Updater

log = alog.use_channel(__name__)


def _never() -> bool:
    return False


def tune(
    base_model: BaseModel,
    adapter: Adapter,
    train: Iterable[TrainRecord],
    *,
    validation: Iterable[TrainRecord] | None = None,
    options: TrainingOptions,
    callbacks: Sequence[TrainingCallback] = (),
    should_stop: Callable[[], bool] = _never,
    dataset: DatasetOptions | None = None,
    generate: Generate | None = None,
    run_folder: Path | None = None,
    resume_from: Path | None = None,
    backup_folder: Path | None = None,
) -> TrainingResult:
    """Learn ``adapter`` from records. Its tensors are changed in place, nothing else is.

    Args:
        base_model: Stays as it is; others may generate from it meanwhile.
        adapter: What is learned. After an error it holds a half-trained state: drop it. To go on
            from an earlier adapter with a new optimizer, hand in what ``load_adapter`` gives.
        train: Records, read once.
        validation: Records that are evaluated but not learned; None or empty for none.
        options: Hyperparameters. ``torch_dtype`` and ``device`` were decided with ``base_model``.
        callbacks: Told what happens; a progress bar is added unless ``silence_progress_bars``.
        should_stop: Asked before every batch.
        dataset: How records become text and what is drawn anew in each epoch; the defaults if None.
            Its files, columns and split are ``load_dataset``'s business.
        generate: Writes texts with the base model and the adapter as they are at that moment; for
            metrics that compare texts.
        run_folder: Gets ``checkpoints/`` and ``predictions/``; None writes none.
        resume_from: A checkpoint, or a folder in which the newest whole one is taken. The training
            goes on from there as if it had never stopped; records, options, base model and kind of
            adapter must be those it was started with.
        backup_folder: Gets a copy of each checkpoint.

    Returns:
        Losses, what was truncated, counts.

    Raises:
        InvalidInputError: For an option that cannot be meant.
        VerbalizerError: For a verbalizer without placeholder, or one that shows the label.
        TrainingDataError: For empty data or a row that cannot be learned from; names the row.
        ArtifactError: If there is no whole checkpoint to resume from.
        ConflictError: If the checkpoint is of another training, naming each difference; or if
            ``run_folder`` holds checkpoints and nothing is resumed.
        NotSupportedError: If a metric's or optimizer's package is not installed.
        TrainingFailedError: If a loss or gradient is not finite; names the step and the rows.
        CancelledError: If ``should_stop`` said so.
    """
    checkpoint = None if resume_from is None else find_checkpoint(resume_from)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    options = settle_options(options, default_seed=None if state is None else state.seed)
    metrics = make_metrics(options.metrics)
    _require_generate(metrics, generate)
    if not options.silence_progress_bars:
        callbacks = (*callbacks, ProgressBar())
    feeds = [TrackerFeed(each, run_folder=run_folder) for each in make_trackers(options.trackers)]
    callbacks = (*callbacks, *feeds)
    if run_folder is not None:
        writer = CheckpointWriter(
            run_folder,
            adapter,
            options,
            base_model_name=base_model.name,
            is_resumed=state is not None,
            backup_folder=backup_folder,
        )
        callbacks = (*callbacks, PredictionsFile(run_folder / PREDICTIONS_FOLDER), writer)
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.close)
        started = time.monotonic()
        data, validation_data = read_data(
            base_model,
            adapter,
            train,
            validation,
            options=options,
            dataset=dataset,
            should_stop=should_stop,
        )
        noise = embedding_noise_of(dataset, seed=options.seed)
        _require_validation(options, validation_data)
        training = _Training(
            base_model,
            adapter,
            data,
            validation_data,
            options=options,
            metrics=metrics,
            generate=generate,
            callbacks=callbacks,
            should_stop=should_stop,
            noise=noise,
        )
        if state is not None and checkpoint is not None:
            training.restore(state, checkpoint)
        training.run()
        result = TrainingResult(
            losses=tuple(training.losses),
            validation_losses=tuple(training.validation_losses),
            truncation=data.truncation,
            validation_truncation=validation_data.truncation if validation_data else None,
            num_rows=len(data),
            num_steps=training.progress.step,
            num_input_tokens=training.progress.num_input_tokens,
            num_label_tokens=training.progress.num_label_tokens,
            seed=options.seed,
            seconds=time.monotonic() - started,
            best_step=training.best.step,
            is_stopped_early=training.is_stopped_early,
        )
        for callback in callbacks:
            callback.on_finish(result)
    return result


class _Training:
    """The state of one run, and the steps that change it."""

    def __init__(
        self,
        base_model: BaseModel,
        adapter: Adapter,
        data: TrainingData,
        validation: TrainingData | None,
        *,
        options: TrainingOptions,
        metrics: tuple[Metric, ...],
        generate: Generate | None,
        callbacks: Sequence[TrainingCallback],
        should_stop: Callable[[], bool],
        noise: EmbeddingNoise | None,
    ) -> None:
        self.progress = Progress()
        self.losses: list[LossPoint] = []
        self.validation_losses: list[EvaluationPoint] = []
        self.best = BestSoFar(higher_is_better=metrics[0].higher_is_better)

        self._base_model = base_model
        self._adapter = adapter
        self._data = data
        self._validation = validation
        self._options = options
        self._metrics = metrics
        self._generate = generate if any(metric.needs_text for metric in metrics) else None
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._noise = noise
        self._updater = Updater(adapter, options)
        self._network = TrainingNetwork(
            base_model,
            adapter,
            base_dropout=options.base_dropout,
            gradient_checkpointing=options.gradient_checkpointing,
            embedding_noise=noise,
        )
        self._lengths = data.lengths
        self._updates_per_epoch = num_windows(
            len(data), batch_size=options.batch_size, accumulate_steps=options.accumulate_steps
        )
        self._num_steps = options.num_epochs * self._updates_per_epoch
        self._fingerprint: RunFingerprint | None = None

    @property
    def is_stopped_early(self) -> bool:
        """Whether too many evaluations brought nothing better."""
        patience = self._options.early_stopping_patience
        return 0 < patience <= self.best.num_evaluations_since

    def run(self) -> None:
        """All epochs: the loop itself."""
        self._tell_start()
        if self._options.evaluate_before_training and not self.validation_losses:
            self._evaluate()
        with self._updater.requiring_gradients():
            while not self._is_done:
                self._run_epoch()
        self.best.put_back(self._updater.learned)

    @property
    def _is_done(self) -> bool:
        return self.progress.epoch >= self._options.num_epochs or self.is_stopped_early

    def _run_epoch(self) -> None:
        """One pass over the data, or what is left of it."""
        started, windows = time.monotonic(), self._plan(self.progress.epoch)
        for window in windows[self.progress.windows_done :]:
            self._learn(window)
            self.progress.windows_done += 1
            is_evaluation_point = is_evaluation_due(
                self.progress.step,
                num_updates=self._num_steps,
                updates_per_epoch=self._updates_per_epoch,
                evaluation_epochs=self._options.evaluation_epochs,
            )
            if is_evaluation_point:
                self._evaluate()
            is_epoch_end = self.progress.windows_done == len(windows)
            if is_epoch_end:
                self._end_epoch(time.monotonic() - started)
            self._tell_resume_point(
                is_evaluation_point=is_evaluation_point, is_epoch_end=is_epoch_end
            )
            if self.is_stopped_early:
                return

    def _end_epoch(self, seconds: float) -> None:
        done = self.progress
        mean = done.epoch_loss / done.epoch_num_units
        event = EpochEvent(done.epoch, done.step, mean, seconds)
        for callback in self._callbacks:
            callback.on_epoch_end(event)
        done.epoch += 1
        done.windows_done = done.epoch_num_units = 0
        done.epoch_loss = 0.0

    def _learn(self, window: Window) -> None:
        """One update from one window."""
        started, done = time.monotonic(), self.progress
        batches = [self._collate(rows, self._data) for rows in window]
        units = sum(num_units(batch, self._options.loss_function) for batch in batches)
        rows = [row for batch in batches for row in batch.rows]
        if units == 0:
            raise TrainingFailedError(f"step {done.step + 1}: no label token in {_named(rows)}")
        first_batch = done.num_batches
        loss_sums = [self._forward_backward(batch, units) for batch in batches]
        self._require_finite(loss_sums, batches)
        gradient_norm = self._updater.gradient_norm()
        if not math.isfinite(gradient_norm):
            self._refuse_gradient(batches, units, first_batch)
        learning_rate = learning_rate_at(
            done.step,
            num_updates=self._num_steps,
            options=self._options,
            updates_per_epoch=self._updates_per_epoch,
        )
        self._updater.update(learning_rate, gradient_norm)

        done.step += 1
        loss = float(sum(loss_sums)) / units
        done.epoch_loss += loss * units
        done.epoch_num_units += units
        num_input_tokens = sum(batch.num_input_tokens for batch in batches)
        num_label_tokens = sum(batch.num_label_tokens for batch in batches)
        done.num_input_tokens += num_input_tokens
        done.num_label_tokens += num_label_tokens
        point = LossPoint(done.epoch, done.step, loss, learning_rate, datetime.now(UTC))
        self.losses.append(point)
        event = StepEvent(
            epoch=done.epoch,
            step=done.step,
            loss=loss,
            learning_rate=learning_rate,
            num_rows=len(rows),
            num_input_tokens=num_input_tokens,
            num_label_tokens=num_label_tokens,
            seconds=time.monotonic() - started,
            gradient_norm=gradient_norm,
        )
        for callback in self._callbacks:
            callback.on_step(event)

    def _forward_backward(self, batch: TokenBatch, units: int) -> torch.Tensor:
        """Add the batch's part of the window's gradient; its loss, summed.

        Dividing by the units of the whole window, not of the batch, is what makes k batches of b
        rows the same as one batch of k·b.
        """
        self._stop_if_asked()
        loss_sum = self._backward(batch, units, self.progress.num_batches)
        self.progress.num_batches += 1
        event = BatchEvent(self.progress.epoch, self.progress.num_batches)
        for callback in self._callbacks:
            callback.on_batch(event)
        return loss_sum

    def _backward(self, batch: TokenBatch, units: int, number: int) -> torch.Tensor:
        """Forward and backward alone; what is drawn depends on the seed and ``number``."""
        with self._dropout_randomness(number), self._embedding_noise(batch, number):
            weights = label_weights(batch, self._options.loss_function)
            loss_sum = self._network.loss_sum(batch, weights)
            (loss_sum / units).backward()
        return loss_sum.detach()

    def _evaluate(self) -> None:
        """All metrics over the validation data, if there is any."""
        data = self._validation
        if data is None:
            return
        rows: list[ScoredRow] = []
        with self._network.evaluating():
            for indices in plan_evaluation(data.lengths, batch_size=self._options.batch_size):
                self._stop_if_asked()
                rows += score_rows(self._network, self._collate(indices, data))
        with_text = with_texts(
            rows,
            data,
            self._base_model.tokenizer,
            is_seq2seq=self._base_model.kind == "seq2seq",
            generate=self._generate,
        )
        step = self.progress.step
        evaluation = evaluate_rows(with_text, self._metrics, epoch=self.progress.epoch, step=step)
        self.validation_losses.append(evaluation.point)
        self.best.look_at(evaluation.value, step=step)
        if self.best.is_at(step) and self._options.save_checkpoint == "best":
            self.best.keep(self._updater.learned)
        for callback in self._callbacks:
            callback.on_evaluation(evaluation.point)
            callback.on_scored_rows(evaluation)

    def _require_finite(
        self, loss_sums: Sequence[torch.Tensor], batches: Sequence[TokenBatch]
    ) -> None:
        """Refuse to update from a loss that is no number."""
        finite = torch.isfinite(torch.stack(list(loss_sums))).tolist()
        bad = [
            row for batch, ok in zip(batches, finite, strict=True) if not ok for row in batch.rows
        ]
        if bad:
            raise TrainingFailedError(
                f"step {self.progress.step + 1}: the loss is not finite in {_named(bad)}; "
                "a lower learning_rate or another torch_dtype may help"
            )

    def _refuse_gradient(
        self, batches: Sequence[TokenBatch], units: int, first_batch: int
    ) -> NoReturn:
        """Name the rows whose gradient is no number: the batches are run again, one by one."""
        bad: list[int] = []
        for number, batch in enumerate(batches, start=first_batch):
            self._updater.clear()
            self._backward(batch, units, number)
            if not math.isfinite(self._updater.gradient_norm()):
                bad += batch.rows
        self._updater.clear()
        everything = [row for batch in batches for row in batch.rows]
        raise TrainingFailedError(
            f"step {self.progress.step + 1}: the gradient is not finite in "
            f"{_named(bad or everything)}; a lower learning_rate or another torch_dtype may help"
        )

    @contextlib.contextmanager
    def _dropout_randomness(self, number: int) -> Iterator[None]:
        """Repeatable dropout, where there is any: torch offers it no generator of its own."""
        if not (self._options.base_dropout or self._adapter.has_dropout):
            yield
            return
        devices = [self._base_model.device] if self._base_model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self._options.seed + number) % 2**63)
            yield

    def _embedding_noise(
        self, batch: TokenBatch, number: int
    ) -> contextlib.AbstractContextManager[None]:
        if self._noise is None:
            return contextlib.nullcontext()
        return self._noise.applied(batch.attention_mask, batch=number)

    def _plan(self, epoch: int) -> list[Window]:
        return plan_epoch(
            self._lengths,
            batch_size=self._options.batch_size,
            accumulate_steps=self._options.accumulate_steps,
            seed=self._options.seed,
            epoch=epoch,
            group_by_length=self._options.group_by_length,
        )

    def capture(self) -> TrainingState:
        """A copy of everything that a resume needs."""
        if self._fingerprint is None:
            self._fingerprint = self._fingerprinted()
        best = self.best
        return TrainingState(
            seed=self._options.seed,
            progress=dataclasses.replace(
                self.progress,
                best_step=best.step,
                best_value=best.value,
                num_evaluations_since_best=best.num_evaluations_since,
            ),
            losses=tuple(self.losses),
            evaluations=tuple(self.validation_losses),
            parameters=copied(self._updater.learned),
            optimizer=copied(self._updater.tensors()),
            best_parameters={} if best.is_at(self.progress.step) else dict(best.parameters),
            fingerprint=self._fingerprint,
        )

    def restore(self, state: TrainingState, checkpoint: Path) -> None:
        """Take up the training that ``state`` is of.

        Args:
            state: Read from ``checkpoint``.
            checkpoint: For messages, and what else lies there.

        Raises:
            ConflictError: If it is of another training.
        """
        self._fingerprint = self._fingerprinted()
        differences = state.fingerprint.differences(self._fingerprint)
        if differences:
            raise ConflictError(
                f"checkpoint {checkpoint.name!r} is of another training: {'; '.join(differences)}"
            )
        self._updater.restore(state.parameters, state.optimizer)
        expected = expected_content_hash(checkpoint)
        if expected not in (None, self._adapter.content_hash()):
            raise ConflictError(
                f"checkpoint {checkpoint.name!r} is of another training: what is not learned of "
                "the adapter differs; start it with the same seed and initialisation"
            )
        self.progress = state.progress
        self.losses = list(state.losses)
        self.validation_losses = list(state.evaluations)
        self.best = BestSoFar(
            higher_is_better=self._metrics[0].higher_is_better,
            step=state.progress.best_step,
            value=state.progress.best_value,
            num_evaluations_since=state.progress.num_evaluations_since_best,
            parameters=state.best_parameters,
        )
        if self._options.save_checkpoint == "best" and self.best.is_at(self.progress.step):
            self.best.keep(self._updater.learned)
        log.info("training goes on: checkpoint=%s step=%d", checkpoint.name, self.progress.step)

    def _fingerprinted(self) -> RunFingerprint:
        return fingerprint_run(
            self._base_model, self._adapter, self._data, self._validation, self._options
        )

    def _tell_resume_point(self, *, is_evaluation_point: bool, is_epoch_end: bool) -> None:
        point = ResumePoint(
            step=self.progress.step,
            is_evaluation_point=is_evaluation_point,
            is_epoch_end=is_epoch_end,
            is_last=self._is_done,
            best_step=self.best.step,
            capture=self.capture,
        )
        for callback in self._callbacks:
            callback.on_resume_point(point)

    def _tell_start(self) -> None:
        num_rows, options = len(self._data), self._options
        event = StartEvent(
            options=options,
            num_rows=num_rows,
            num_steps=self._num_steps,
            num_batches=options.num_epochs
            * num_batches(
                num_rows,
                batch_size=options.batch_size,
                accumulate_steps=options.accumulate_steps,
            ),
            num_trainable=self._updater.num_trainable,
            truncation=self._data.truncation,
            first_step=self.progress.step,
            first_batch=self.progress.num_batches,
            first_epoch=self.progress.epoch,
        )
        log.info(
            "training starts: method=%s rows=%d steps=%d batch_size=%d trainable=%d",
            self._adapter.method,
            num_rows,
            self._num_steps,
            options.batch_size,
            event.num_trainable,
        )
        for callback in self._callbacks:
            callback.on_start(event)

    def _collate(self, rows: Sequence[int], data: TrainingData) -> TokenBatch:
        return collate(
            data.batch(rows, epoch=self.progress.epoch),
            pad_token_id=self._base_model.pad_token_id,
            is_seq2seq=self._base_model.kind == "seq2seq",
            device=self._base_model.device,
        )

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise CancelledError(f"training was cancelled after {self.progress.step} updates")


def _require_generate(metrics: Sequence[Metric], generate: Generate | None) -> None:
    names = [metric.name for metric in metrics if metric.needs_text]
    if names and generate is None:
        raise InvalidInputError(
            f"'metrics' names {', '.join(names)}, which compare generated text, and this training "
            "was given nothing to generate with"
        )


def _require_validation(options: TrainingOptions, validation: TrainingData | None) -> None:
    if validation is not None:
        return
    if options.save_checkpoint == "best":
        raise InvalidInputError("'save_checkpoint' is 'best', which needs validation data")
    for name in ("early_stopping_patience", "evaluate_before_training"):
        if getattr(options, name):
            raise InvalidInputError(f"'{name}' needs validation data")


def _named(rows: Sequence[int]) -> str:
    """The rows of a message: numbers of the first few."""
    listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS]))
    return f"rows {listed}" + (
        f" and {more} more" if (more := len(rows) - MAX_LISTED_ROWS) > 0 else ""
    )
