"""All that a training needs to go on as if it had never stopped.

Random numbers need no place here: the order of rows, dropout and everything else that is drawn is
a function of the seed and of the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from luthier.training.checkpointing.group_record import GroupRecord
from luthier.training.checkpointing.run_fingerprint import RunFingerprint
from luthier.training.processes.sharding import whole_tensor
from luthier.training.results import EvaluationPoint, LossPoint

#: Tensors by name.
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Progress:
    """How far a training has come; the loop counts in it.

    Args:
        epoch: Pass over the data to go on with, from 0.
        windows_done: Updates of that pass that are done.
        step: Updates done in all.
        num_batches: Batches that went through the model.
        num_input_tokens: Tokens that went through the model.
        num_label_tokens: Tokens that were learned.
        epoch_loss: Losses of the pass so far, each times its units.
        epoch_num_units: Label tokens of the pass so far, or rows for a sample average.
        best_step: Update after which the first metric was best; None before any evaluation.
        best_value: The first metric there.
        num_evaluations_since_best: Evaluations that brought no improvement since.
    """

    epoch: int = 0
    windows_done: int = 0
    step: int = 0
    num_batches: int = 0
    num_input_tokens: int = 0
    num_label_tokens: int = 0
    epoch_loss: float = 0.0
    epoch_num_units: int = 0
    best_step: int | None = None
    best_value: float | None = None
    num_evaluations_since_best: int = 0


@dataclass(frozen=True)
class TrainingState:
    """A copy of everything, on the CPU.

    Args:
        seed: In use, never -1.
        progress: Counters.
        losses: One per update.
        evaluations: So far.
        parameters: What is learned, by name.
        optimizer: Its state, by ``<parameter>::<key>``; copies in fp32 of what is learned in half
            precision, by ``<parameter>::master``.
        best_parameters: What was best, where that is to be the result; else empty.
        fingerprint: What this training is of.
        group: Who it shares passes with; None if it learns alone.
    """

    seed: int
    progress: Progress
    losses: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]
    parameters: Tensors
    optimizer: Tensors
    best_parameters: Tensors
    fingerprint: RunFingerprint
    group: GroupRecord | None = None


@dataclass(frozen=True)
class ResumePoint:
    """A moment between two updates at which a training can be left and taken up again.

    Args:
        step: Updates done.
        is_evaluation_point: Whether this is where an evaluation belongs, even without data for it.
        is_epoch_end: Whether a pass over the data has just ended.
        is_last: Whether the training ends here.
        best_step: Update after which the first metric was best so far, or None.
        capture: Copies the state. Valid until the callback returns.
    """

    step: int
    is_evaluation_point: bool
    is_epoch_end: bool
    is_last: bool
    best_step: int | None
    capture: Callable[[], TrainingState]


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, whole, contiguous and without gradients."""
    return {
        name: whole_tensor(tensor.detach()).to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
