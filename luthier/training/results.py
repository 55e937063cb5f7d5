"""What a training leaves behind, beside the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from luthier.training.data.examples import TruncationReport


@dataclass(frozen=True)
class LossPoint:
    """The training loss of one update.

    Args:
        epoch: Pass over the data, from 0.
        step: Number of the update in the whole training, from 1.
        value: Cross-entropy in nats, averaged over the label tokens of the update's rows.
        learning_rate: Used for the update.
        timestamp: When the update was done, UTC.
    """

    epoch: int
    step: int
    value: float
    learning_rate: float
    timestamp: datetime


@dataclass(frozen=True)
class EvaluationPoint:
    """How the model does on the validation data after some update.

    Args:
        epoch: Pass over the data in which it happened, from 0.
        step: Updates done; 0 before training.
        value: Cross-entropy in nats, averaged over all label tokens of the validation data.
        metrics: Name to value, None where there is none; what ``metrics`` of the options names.
    """

    epoch: int
    step: int
    value: float
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """How a training went. The adapter that was handed to it holds what was learned.

    Args:
        losses: One point per update.
        validation_losses: One point per evaluation; empty without validation data.
        truncation: What was cut from the training data.
        validation_truncation: What was cut from the validation data; None without.
        num_rows: Training rows per epoch.
        num_steps: Updates done.
        num_input_tokens: Tokens that went through the model, padding and virtual tokens not
            counted.
        num_label_tokens: Tokens that were learned, over all epochs.
        seed: In use; a given one, or the one drawn for -1.
        seconds: Wall time, reading the data included.
        best_step: Update after which the first metric was best; None without validation data.
        is_stopped_early: Whether ``early_stopping_patience`` ended it.
    """

    losses: tuple[LossPoint, ...]
    validation_losses: tuple[EvaluationPoint, ...]
    truncation: TruncationReport
    validation_truncation: TruncationReport | None
    num_rows: int
    num_steps: int
    num_input_tokens: int
    num_label_tokens: int
    seed: int
    seconds: float
    best_step: int | None = None
    is_stopped_early: bool = False
