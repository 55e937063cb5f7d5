"""The course of a training so far, how it is copied into a checkpoint and taken up again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import expected_content_hash
from luthier.training.checkpointing.gathered import SharedOut, is_shared_out
from luthier.training.checkpointing.group_record import GroupRecord
from luthier.training.checkpointing.run_fingerprint import RunFingerprint, fingerprint_run
from luthier.training.checkpointing.state import Progress, TrainingState, copied
from luthier.training.data.examples import TrainingData
from luthier.training.evaluation.best import BestSoFar
from luthier.training.optimization.updater import Updater
from luthier.training.results import EvaluationPoint, LossPoint

log = alog.use_channel(__name__)

_MARK_CHARS = 32


@dataclass
class Course:
    """What happened so far; the loop writes in it.

    Args:
        best: The best evaluation.
        progress: Counters.
        losses: One per update.
        evaluations: One per evaluation.
    """

    best: BestSoFar
    progress: Progress = field(default_factory=Progress)
    losses: list[LossPoint] = field(default_factory=list)
    evaluations: list[EvaluationPoint] = field(default_factory=list)


class StateKeeper:
    """Copies the state of one training and puts it back.

    Args:
        base_model: Of the training.
        adapter: What is learned.
        data: Learned from.
        validation: Evaluated, or None.
        options: With the seed drawn.
        updater: Holds the parameters and the optimizer.
    """

    def __init__(
        self,
        base_model: BaseModel,
        adapter: Adapter,
        data: TrainingData,
        validation: TrainingData | None,
        *,
        options: TrainingOptions,
        updater: Updater,
    ) -> None:
        self._base_model = base_model
        self._adapter = adapter
        self._data = data
        self._validation = validation
        self._options = options
        self._updater = updater
        self._fingerprint: RunFingerprint | None = None

    def capture(self, course: Course, *, group: GroupRecord | None = None) -> TrainingState:
        """A copy of everything that a resume needs. What is shared out is not copied: it is valid
        until the next update, and each process has to go through it (``gathered``).

        Args:
            course: So far.
            group: Who the training shares passes with, or None.

        Returns:
            The copy.
        """
        best, progress = course.best, course.progress
        return TrainingState(
            seed=self._options.seed,
            progress=dataclasses.replace(
                progress,
                best_step=best.step,
                best_value=best.value,
                num_evaluations_since_best=best.num_evaluations_since,
            ),
            losses=tuple(course.losses),
            evaluations=tuple(course.evaluations),
            parameters=_captured(self._updater.learned),
            optimizer=_captured(self._updater.tensors()),
            best_parameters={} if best.is_at(progress.step) else _captured(best.parameters),
            fingerprint=self._fingerprinted(),
            group=group,
        )

    def marks(self) -> dict[str, str]:
        """Hashes of what the processes of one training must have in common, by name."""
        return self._fingerprinted().marks()

    def mark(self) -> str:
        """One hash of all of them."""
        content = json.dumps(self.marks(), sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:_MARK_CHARS]

    def restore(self, state: TrainingState, checkpoint: Path, *, higher_is_better: bool) -> Course:
        """Put back parameters and optimizer.

        Args:
            state: Read from ``checkpoint``.
            checkpoint: For messages, and what else lies there.
            higher_is_better: The direction of the first metric.

        Returns:
            The course up to there.

        Raises:
            ConflictError: If it is of another training.
        """
        differences = state.fingerprint.differences(self._fingerprinted())
        if differences:
            raise ConflictError(
                f"checkpoint {checkpoint.name!r} is of another training: {'; '.join(differences)}"
            )
        self._updater.restore(state.parameters, state.optimizer)
        expected = expected_content_hash(checkpoint)
        if expected is not None and expected != self._adapter.content_hash():
            raise ConflictError(
                f"checkpoint {checkpoint.name!r} is of another training: what is not learned of "
                "the adapter differs; start it with the same seed and initialisation"
            )
        best = BestSoFar(
            higher_is_better=higher_is_better,
            step=state.progress.best_step,
            value=state.progress.best_value,
            num_evaluations_since=state.progress.num_evaluations_since_best,
            parameters=state.best_parameters,
        )
        if self._options.save_checkpoint == "best" and best.is_at(state.progress.step):
            best.keep(self._updater.learned)
        log.info("training goes on: checkpoint=%s step=%d", checkpoint.name, state.progress.step)
        return Course(best, state.progress, list(state.losses), list(state.evaluations))

    def _fingerprinted(self) -> RunFingerprint:
        if self._fingerprint is None:
            self._fingerprint = fingerprint_run(
                self._base_model, self._adapter, self._data, self._validation, self._options
            )
        return self._fingerprint


def _captured(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """A copy on the CPU; where they are shared out, none until they are written."""
    return SharedOut(tensors) if is_shared_out(tensors) else copied(tensors)
