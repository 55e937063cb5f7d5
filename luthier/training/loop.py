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

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.data_model.training_options import TrainingOptions
from luthier.errors import CancelledError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.callbacks.progress_bar import ProgressBar
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
from luthier.training.network import TrainingNetwork
from luthier.training.optimization import build_optimizer, learning_rate_at, set_learning_rate
from luthier.training.preparation import read_data, settle_options
from luthier.training.results import EvaluationPoint, LossPoint, TrainingResult

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
) -> TrainingResult:
    """Learn ``adapter`` from records. Its tensors are changed in place, nothing else is.

    Args:
        base_model: Stays as it is; others may generate from it meanwhile.
        adapter: What is learned. After an error it holds a half-trained state: drop it.
        train: Records, read once.
        validation: Records whose loss is computed after each epoch; None or empty for none.
        options: Hyperparameters. ``torch_dtype`` and ``device`` were decided with ``base_model``.
        callbacks: Told what happens; a progress bar is added unless ``silence_progress_bars``.
        should_stop: Asked before every batch.

    Returns:
        Losses, what was truncated, counts.

    Raises:
        InvalidInputError: For an option that cannot be meant.
        VerbalizerError: For a verbalizer without placeholder, or one that shows the label.
        TrainingDataError: For empty data or a row that cannot be learned from; names the row.
        TrainingFailedError: If a loss is not finite; names the step and the rows.
        CancelledError: If ``should_stop`` said so.
    """
    options = settle_options(options)
    if not options.silence_progress_bars:
        callbacks = (*callbacks, ProgressBar())
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.close)
        started = time.monotonic()
        data, validation_data = read_data(
            base_model, adapter, train, validation, options=options, should_stop=should_stop
        )
        training = _Training(base_model, adapter, data, options, callbacks, should_stop)
        with training.learnable_parameters():
            training.run(validation_data)
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
        options: TrainingOptions,
        callbacks: Sequence[TrainingCallback],
        should_stop: Callable[[], bool],
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
        self._options = options
        self._callbacks = callbacks
        self._should_stop = should_stop
        self._parameters = [parameter for _, parameter in adapter.named_parameters()]
        self._optimizer = build_optimizer(
            adapter.named_parameters(), options, learning_rate_factor=adapter.learning_rate_factor
        )
        self._network = TrainingNetwork(
            base_model,
            adapter,
            base_dropout=options.base_dropout,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        self._lengths = data.lengths
        self._num_steps = options.num_epochs * num_windows(
            len(data), batch_size=options.batch_size, accumulate_steps=options.accumulate_steps
        )

    def run(self, validation: TrainingData | None) -> None:
        """All epochs: the loop itself."""
        self._tell_start()
        for epoch in range(self._options.num_epochs):
            started = time.monotonic()
            epoch_loss, epoch_labels = 0.0, 0
            for window in self._plan(epoch):
                loss, num_labels = self._learn(window, epoch)
                epoch_loss, epoch_labels = epoch_loss + loss * num_labels, epoch_labels + num_labels
            seconds = time.monotonic() - started
            if validation is not None:
                self._evaluate(validation, epoch)
            event = EpochEvent(epoch, self.step, epoch_loss / epoch_labels, seconds)
            for callback in self._callbacks:
                callback.on_epoch_end(event)

    def _learn(self, window: Window, epoch: int) -> tuple[float, int]:
        """One update from one window; its mean loss and its label tokens."""
        started = time.monotonic()
        batches = [self._collate(rows, self._data) for rows in window]
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
        with self._dropout_randomness():
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
                batch = self._collate(rows, data)
                total += float(self._network.loss_sum(batch))
                num_labels += batch.num_label_tokens
        point = EvaluationPoint(epoch, self.step, total / num_labels)
        self.validation_losses.append(point)
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
            [data.examples[row] for row in rows],
            pad_token_id=self._base_model.pad_token_id,
            is_seq2seq=self._base_model.kind == "seq2seq",
            device=self._base_model.device,
        )

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise CancelledError(f"training was cancelled after {self.step} updates")


def _named(rows: Sequence[int]) -> str:
    """The rows of a message: numbers of the first few."""
    listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS]))
    return f"rows {listed}" + (
        f" and {more} more" if (more := len(rows) - MAX_LISTED_ROWS) > 0 else ""
    )
