"""trackio: Hugging Face's local dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.training.trackers.base import TrackedRun, Tracker


class TrackioTracker(Tracker):
    """Logs into a project."""

    name: ClassVar[str] = "trackio"

    def start(self, run: TrackedRun) -> None:
        """Open a run of the project."""
        import trackio  # noqa: PLC0415 - an extra, and slow to import

        self._run: Any = trackio.init(project=run.project, name=run.name, config=dict(run.settings))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """All values of a step."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Write what is left."""
        self._run.finish()
