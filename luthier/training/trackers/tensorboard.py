"""TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.errors import InvalidInputError
from luthier.training.trackers.base import TrackedRun, Tracker

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes into ``<run folder>/tensorboard``."""

    name: ClassVar[str] = "tensorboard"

    def start(self, run: TrackedRun) -> None:
        """Open the file; the settings become a text."""
        # An extra, and slow to import.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        if run.folder is None:
            raise InvalidInputError("tracker 'tensorboard' needs a run folder to write into")
        self._writer: Any = SummaryWriter(log_dir=str(run.folder / FOLDER))
        text = json.dumps(dict(run.settings), indent=2)
        self._writer.add_text("settings", f"```json\n{text}\n```")

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self) -> None:
        """Flush and close the file."""
        self._writer.close()
