"""Writes checkpoints: when, and which ones stay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import alog

from luthier.adapters.base import Adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ConflictError
from luthier.files.atomic_folder import write_folder_atomically
from luthier.training.callbacks.base import StartEvent, TrainingCallback
from luthier.training.checkpointing.checkpoints import (
    CHECKPOINTS_FOLDER,
    TENSOR_FILES,
    checkpoint_folder,
    delete_checkpoint,
    delete_partial,
    list_checkpoints,
    write_checkpoint,
)
from luthier.training.checkpointing.gathered import give_shares
from luthier.training.checkpointing.state import ResumePoint
from luthier.training.processes.parallel import ALONE, ProcessGroup

log = alog.use_channel(__name__)

#: Kept unless told otherwise: the newest, and the one before it should the newest be damaged.
_KEEP = 2
#: What a checkpoint is taken to cost before the first is written: an optimizer keeps two numbers
#: for each that is learned, in fp32, and files are hashed and flushed at this rate or faster.
_BYTES_PER_NUMBER, _BYTES_PER_SECOND = 12, 200_000_000


class CheckpointWriter(TrainingCallback):
    """Saves the training's state into ``<run folder>/checkpoints``.

    Args:
        run_folder: One training's own.
        adapter: What is learned.
        options: ``save_checkpoint``, ``save_every_steps``, ``save_every_seconds``,
            ``checkpoint_time_share`` and ``keep_checkpoints`` count.
        base_model_name: Goes into the adapter's folder.
        is_resumed: Whether checkpoints may be there already.
        is_following: Whether another process writes, and this one only adds its share to what is
            captured.
        backup_folder: Each checkpoint is copied there; a copy that fails is logged and no more.
        group: The processes that train together; what is due is decided by the main one.
        clock: Seconds, only ever growing.

    Raises:
        ConflictError: If another training's checkpoints are there.
    """

    def __init__(
        self,
        run_folder: Path,
        adapter: Adapter,
        options: TrainingOptions,
        *,
        base_model_name: str,
        is_resumed: bool = False,
        is_following: bool = False,
        backup_folder: Path | None = None,
        group: ProcessGroup = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = run_folder / CHECKPOINTS_FOLDER
        self._adapter = adapter
        self._options = options
        self._base_model_name = base_model_name
        self._backup_folder = backup_folder
        self._is_following = is_following
        self._group = group
        self._clock = clock
        #: When the last checkpoint was complete, and what one costs, in seconds.
        self._saved_at = clock()
        self._cost = 0.0
        if not (is_resumed or is_following) and list_checkpoints(self._folder):
            raise ConflictError(
                f"{run_folder.name!r} already holds checkpoints; resume from them, or give another "
                "folder"
            )

    def on_start(self, event: StartEvent) -> None:
        """Delete what a killed run left half-written."""
        self._saved_at = self._clock()
        self._cost = event.num_trainable * _BYTES_PER_NUMBER / _BYTES_PER_SECOND
        if not self._is_following:
            delete_partial(self._folder)

    def on_resume_point(self, point: ResumePoint) -> None:
        """Write a checkpoint if it is due, then delete old ones."""
        # Clocks differ, and all processes have to give their share of the state.
        if not self._group.from_main(int(self._is_due(point))):
            return
        started = self._clock()
        state = point.capture()
        if self._is_following:
            for name in TENSOR_FILES:
                give_shares(getattr(state, name))
            self._saved_at = self._clock()
            return
        folder = checkpoint_folder(self._folder, point.step)
        write_checkpoint(folder, state, self._adapter, base_model_name=self._base_model_name)
        log.debug("checkpoint written: step=%d", point.step)
        self._delete_old(self._folder, point)
        self._copy(folder, point)
        self._saved_at = self._clock()
        self._cost = self._saved_at - started

    def _is_due(self, point: ResumePoint) -> bool:
        word, every = self._options.save_checkpoint, self._options.save_every_steps
        if every and point.step % every == 0 and point.step:
            return True
        if word == "last":
            return point.is_last or self._is_worth_it(point)
        if word == "best":
            return point.best_step == point.step
        if word == "resumable":
            return not point.is_last and self._is_worth_it(point)
        return word == "each_evaluation" and point.is_evaluation_point

    def _is_worth_it(self, point: ResumePoint) -> bool:
        """Whether enough was done since the last checkpoint for another one."""
        seconds, every = self._clock() - self._saved_at, self._options.save_every_seconds
        is_natural = point.is_evaluation_point or point.is_epoch_end
        if not (is_natural or 0 < every <= seconds):
            return False
        share = self._options.checkpoint_time_share
        return share == 1 or self._cost <= share * seconds

    def _delete_old(self, parent: Path, point: ResumePoint) -> None:
        keep = self._options.keep_checkpoints
        if keep is None:
            keep = 0 if self._options.save_checkpoint == "each_evaluation" else _KEEP
        if not keep:
            return
        found = list_checkpoints(parent)
        # A training that goes on from an older checkpoint, perhaps because newer ones are damaged,
        # finds those beside its own; they count once it has come as far.
        reached = [step for step in found if step <= point.step]
        for step in reached[:-keep]:
            if step != point.best_step:
                delete_checkpoint(found[step])

    def _copy(self, folder: Path, point: ResumePoint) -> None:
        if self._backup_folder is None:
            return
        try:
            with write_folder_atomically(
                self._backup_folder / folder.name, overwrite=True
            ) as partial:
                shutil.copytree(folder, partial, dirs_exist_ok=True)
            self._delete_old(self._backup_folder, point)
        except OSError as error:
            log.warning("a checkpoint was not backed up: %s", error)
