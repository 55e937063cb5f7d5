"""Weights & Biases: with the key and mode that its own environment variables say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.training.trackers.base import TrackedRun, Tracker


class WandbTracker(Tracker):
    """Logs into a project."""

    name: ClassVar[str] = "wandb"

    def start(self, run: TrackedRun) -> None:
        """Open a run of the project."""
        import wandb  # noqa: PLC0415 - an extra, and slow to import

        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            config=dict(run.settings),
            dir=None if run.folder is None else str(run.folder),
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """All values of a step."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Upload what is left."""
        self._run.finish()
