"""The contract of a tracker: a system outside that is told numbers.

A tracker may be slow and may fail; ``callbacks.tracker_feed`` calls it in a thread of its own and
keeps both away from the training. Its package is imported in ``start``, not before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker files a training under.

    Args:
        project: Project or experiment.
        name: Of the run.
        folder: For files of a tracker that keeps any; None if the training has none.
        settings: Name to plain value.
    """

    project: str
    name: str
    folder: Path | None
    settings: Mapping[str, Any]


class Tracker(ABC):
    """Is told the course of one training. Every method is called in the same thread."""

    #: Its word in options.
    name: ClassVar[str]

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """Import the package and open the run; called once and first. May raise anything."""

    @abstractmethod
    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers down. ``step`` never falls. May raise anything."""

    @abstractmethod
    def finish(self) -> None:
        """Close the run; called once and last, if ``start`` did not raise. May raise anything."""
