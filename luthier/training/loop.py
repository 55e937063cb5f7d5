"""The training loop, readable top to bottom: one loop for every tuning method.

``tune`` reads the data, then for each epoch and each window of rows: forward and backward per
batch, one update, tell the callbacks. Everything random is drawn from the seed by generators of its
own; torch's global ones are left alone unless the base model's dropout was asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.data_model.dataset_options import DatasetOptions
from luthier.data_model.training_options import TrainingOptions
from luthier.errors import CancelledError, ConflictError, InvalidInputError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.best import BestSoFar, put_back
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.callbacks.checkpoint_writer import CheckpointWriter
from luthier.training.callbacks.progress_bar import ProgressBar
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
from luthier.training.network import TrainingNetwork
from luthier.training.optimization import (
    build_optimizer,
    learning_rate_at,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from luthier.training.preparation import read_data, settle_options
from luthier.training.results import EvaluationPoint, LossPoint, TrainingResult
from luthier.training.run_fingerprint import RunFingerprint, fingerprint_run
from luthier.training.state import Progress, ResumePoint, TrainingState, copied

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
        validation: Records whose loss is computed after each epoch; None or empty for none.
        options: Hyperparameters. ``torch_dtype`` and ``device`` were decided with ``base_model``.
        callbacks: Told what happens; a progress bar is added unless ``silence_progress_bars``.
        should_stop: Asked before every batch.
        dataset: How records become text and what is drawn anew in each epoch; the defaults if None.
            Its files, columns and split are ``load_dataset``'s business.
        run_folder: Gets ``checkpoints/``; None writes none.
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
        TrainingFailedError: If a loss is not finite; names the step and the rows.
        CancelledError: If ``should_stop`` said so.
    """
    checkpoint = None if resume_from is None else find_checkpoint(resume_from)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    options = settle_options(options, default_seed=None if state is None else state.seed)
    if not options.silence_progress_bars:
        callbacks = (*callbacks, ProgressBar())
    if run_folder is not None:
        writer = CheckpointWriter(
            run_folder,
            adapter,
            options,
            base_model_name=base_model.name,
            is_resumed=state is not None,
            backup_folder=backup_folder,
        )
        callbacks = (*callbacks, writer)
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
            base_model, adapter, data, validation_data, options, callbacks, should_stop, noise
        )
        if state is not None and checkpoint is not None:
            training.restore(state, checkpoint)
        with training.learnable_parameters():
            training.run()
        result = TrainingResult(
            losses=tuple(training.losses),
            validation_losses=tuple(training.validation_losses),
            truncation=data.truncation,
            validation_truncation=validation_data.truncation if validation_data else None,
            num_rows=len(data),
            num_steps=training.step,
            num_input_tokens=training.num_input_tokens,
            num_label_tokens=training.num_label_tokens,
            seed=options.seed,
            seconds=time.monotonic() - started,
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
        options: TrainingOptions,
        callbacks: Sequence[TrainingCallback],
        should_stop: Callable[[], bool],
        noise: EmbeddingNoise | None,
    ) -> None:
        self.step = 0
        self.num_batches = 0
        self.num_input_tokens = 0
        self.num_label_tokens = 0
        self.losses: list[LossPoint] = []
        self.validation_losses: list[EvaluationPoint] = []

        self._base_model = base_model
        self._adapter = adapter
        self._data = data
        self._validation = validation
        self._options = options
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._named = dict(adapter.named_parameters())
        self._parameters = list(self._named.values())
        self._optimizer = build_optimizer(
            self._named.items(), options, learning_rate_factor=adapter.learning_rate_factor
        )
        self._network = TrainingNetwork(
            base_model,
            adapter,
            base_dropout=options.base_dropout,
            gradient_checkpointing=options.gradient_checkpointing,
            embedding_noise=noise,
        )
        self._noise = noise
        self._lengths = data.lengths
        self._num_steps = options.num_epochs * num_windows(
            len(data), batch_size=options.batch_size, accumulate_steps=options.accumulate_steps
        )
        self._epoch = 0
        self._windows_done = 0
        self._epoch_loss = 0.0
        self._epoch_num_labels = 0
        self._best = BestSoFar()
        self._fingerprint: RunFingerprint | None = None

    def run(self) -> None:
        """All epochs: the loop itself."""
        self._tell_start()
        while self._epoch < self._options.num_epochs:
            self._run_epoch()
        self._best.put_back(self._named)

    def _run_epoch(self) -> None:
        """One pass over the data, or what is left of it."""
        started, epoch = time.monotonic(), self._epoch
        windows = self._plan(epoch)
        for window in windows[self._windows_done :]:
            loss, num_labels = self._learn(window, epoch)
            self._epoch_loss += loss * num_labels
            self._epoch_num_labels += num_labels
            self._windows_done += 1
            is_end = self._windows_done == len(windows)
            if is_end and self._validation is not None:
                self._evaluate(self._validation, epoch)
            if is_end:
                self._end_epoch(time.monotonic() - started)
            self._tell_resume_point(is_evaluation_point=is_end, is_epoch_end=is_end)

    def _end_epoch(self, seconds: float) -> None:
        mean = self._epoch_loss / self._epoch_num_labels
        event = EpochEvent(self._epoch, self.step, mean, seconds)
        for callback in self._callbacks:
            callback.on_epoch_end(event)
        self._epoch += 1
        self._windows_done = self._epoch_num_labels = 0
        self._epoch_loss = 0.0

    def _learn(self, window: Window, epoch: int) -> tuple[float, int]:
        """One update from one window; its mean loss and its label tokens."""
        started = time.monotonic()
        batches = [self._collate(rows, self._data, epoch) for rows in window]
        num_labels = sum(batch.num_label_tokens for batch in batches)
        rows = [row for batch in batches for row in batch.rows]
        if num_labels == 0:
            raise TrainingFailedError(f"step {self.step + 1}: no label token in {_named(rows)}")
        loss_sums = [self._forward_backward(batch, num_labels, epoch) for batch in batches]
        self._require_finite(loss_sums, batches)
        if self._options.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._options.max_grad_norm)
        learning_rate = learning_rate_at(
            self.step, num_updates=self._num_steps, options=self._options
        )
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

        self.step += 1
        loss = float(sum(loss_sums)) / num_labels
        num_input_tokens = sum(batch.num_input_tokens for batch in batches)
        self.num_input_tokens += num_input_tokens
        self.num_label_tokens += num_labels
        self.losses.append(LossPoint(epoch, self.step, loss, learning_rate, datetime.now(UTC)))
        event = StepEvent(
            epoch=epoch,
            step=self.step,
            loss=loss,
            learning_rate=learning_rate,
            num_rows=len(rows),
            num_input_tokens=num_input_tokens,
            num_label_tokens=num_labels,
            seconds=time.monotonic() - started,
        )
        for callback in self._callbacks:
            callback.on_step(event)
        return loss, num_labels

    def _forward_backward(self, batch: TokenBatch, num_labels: int, epoch: int) -> torch.Tensor:
        """Add the batch's part of the window's gradient; its loss, summed.

        Dividing by the labels of the whole window, not of the batch, is what makes k batches of b
        rows the same as one batch of k·b.
        """
        self._stop_if_asked()
        with self._dropout_randomness(), self._embedding_noise(batch):
            loss_sum = self._network.loss_sum(batch)
            (loss_sum / num_labels).backward()
        self.num_batches += 1
        event = BatchEvent(epoch, self.num_batches)
        for callback in self._callbacks:
            callback.on_batch(event)
        return loss_sum.detach()

    def _evaluate(self, data: TrainingData, epoch: int) -> None:
        """The mean loss over all label tokens of ``data``."""
        total, num_labels = 0.0, 0
        with self._network.evaluating():
            for rows in plan_evaluation(data.lengths, batch_size=self._options.batch_size):
                self._stop_if_asked()
                batch = self._collate(rows, data, epoch)
                total += float(self._network.loss_sum(batch))
                num_labels += batch.num_label_tokens
        point = EvaluationPoint(epoch, self.step, total / num_labels)
        self.validation_losses.append(point)
        self._best.look_at(point.value, step=self.step)
        if self._best.is_at(self.step) and self._options.save_checkpoint == "best":
            self._best.keep(self._named)
        for callback in self._callbacks:
            callback.on_evaluation(point)

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
                f"step {self.step + 1}: the loss is not finite in {_named(bad)}; "
                "a lower learning_rate or another torch_dtype may help"
            )

    @contextlib.contextmanager
    def learnable_parameters(self) -> Iterator[None]:
        """Gradients for the adapter's parameters, for as long as this lasts."""
        before = [parameter.requires_grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, required in zip(self._parameters, before, strict=True):
                parameter.grad = None
                parameter.requires_grad_(required)

    @contextlib.contextmanager
    def _dropout_randomness(self) -> Iterator[None]:
        """Repeatable dropout, where there is any: torch offers it no generator of its own."""
        if not (self._options.base_dropout or self._adapter.has_dropout):
            yield
            return
        devices = [self._base_model.device] if self._base_model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self._options.seed + self.num_batches) % 2**63)
            yield

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
        is_best_elsewhere = self._best.step != self.step
        return TrainingState(
            seed=self._options.seed,
            progress=Progress(
                epoch=self._epoch,
                windows_done=self._windows_done,
                step=self.step,
                num_batches=self.num_batches,
                num_input_tokens=self.num_input_tokens,
                num_label_tokens=self.num_label_tokens,
                epoch_loss=self._epoch_loss,
                epoch_num_labels=self._epoch_num_labels,
                best_step=self._best.step,
                best_value=self._best.value,
                num_evaluations_since_best=self._best.num_evaluations_since,
            ),
            losses=tuple(self.losses),
            evaluations=tuple(self.validation_losses),
            parameters=copied(self._named),
            optimizer=copied(optimizer_tensors(self._optimizer, self._named)),
            best_parameters=dict(self._best.parameters) if is_best_elsewhere else {},
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
        progress = state.progress
        put_back(state.parameters, self._named)
        expected = expected_content_hash(checkpoint)
        if expected not in (None, self._adapter.content_hash()):
            raise ConflictError(
                f"checkpoint {checkpoint.name!r} is of another training: what is not learned of "
                "the adapter differs; start it with the same seed and initialisation"
            )
        restore_optimizer(self._optimizer, self._named, state.optimizer)
        self._epoch, self._windows_done = progress.epoch, progress.windows_done
        self._epoch_loss = progress.epoch_loss
        self._epoch_num_labels = progress.epoch_num_labels
        self.step, self.num_batches = progress.step, progress.num_batches
        self.num_input_tokens = progress.num_input_tokens
        self.num_label_tokens = progress.num_label_tokens
        self.losses = list(state.losses)
        self.validation_losses = list(state.evaluations)
        self._best = BestSoFar(
            step=progress.best_step,
            value=progress.best_value,
            num_evaluations_since=progress.num_evaluations_since_best,
            parameters=state.best_parameters,
        )
        if self._options.save_checkpoint == "best" and self._best.is_at(self.step):
            self._best.keep(self._named)
        log.info("training goes on: checkpoint=%s step=%d", checkpoint.name, self.step)

    def _fingerprinted(self) -> RunFingerprint:
        return fingerprint_run(
            self._base_model, self._adapter, self._data, self._validation, self._options
        )

    def _tell_resume_point(self, *, is_evaluation_point: bool, is_epoch_end: bool) -> None:
        point = ResumePoint(
            step=self.step,
            is_evaluation_point=is_evaluation_point,
            is_epoch_end=is_epoch_end,
            is_last=self._epoch == self._options.num_epochs,
            best_step=self._best.step,
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
            num_trainable=sum(parameter.numel() for parameter in self._parameters),
            truncation=self._data.truncation,
            first_step=self.step,
            first_batch=self.num_batches,
            first_epoch=self._epoch,
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

    def _embedding_noise(self, batch: TokenBatch) -> contextlib.AbstractContextManager[None]:
        if self._noise is None:
            return contextlib.nullcontext()
        return self._noise.applied(batch.attention_mask, batch=self.num_batches)

    def _collate(self, rows: Sequence[int], data: TrainingData, epoch: int) -> TokenBatch:
        return collate(
            data.batch(rows, epoch=epoch),
            pad_token_id=self._base_model.pad_token_id,
            is_seq2seq=self._base_model.kind == "seq2seq",
            device=self._base_model.device,
        )

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise CancelledError(f"training was cancelled after {self.step} updates")


def _require_validation(options: TrainingOptions, validation: TrainingData | None) -> None:
    if validation is None and options.save_checkpoint == "best":
        raise InvalidInputError("'save_checkpoint' is 'best', which needs validation data")


def _named(rows: Sequence[int]) -> str:
    """The rows of a message: numbers of the first few."""
    listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS]))
    return f"rows {listed}" + (
        f" and {more} more" if (more := len(rows) - MAX_LISTED_ROWS) > 0 else ""
    )
