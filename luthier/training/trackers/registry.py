"""From the words of the options to trackers."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import InvalidInputError, did_you_mean
from luthier.training.trackers.base import Tracker
from luthier.training.trackers.mlflow import MlflowTracker
from luthier.training.trackers.tensorboard import TensorBoardTracker
from luthier.training.trackers.trackio import TrackioTracker
from luthier.training.trackers.wandb import WandbTracker

#: Word -> class.
TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker
    for tracker in (TensorBoardTracker, MlflowTracker, WandbTracker, TrackioTracker)
}


def make_trackers(names: Sequence[str]) -> tuple[Tracker, ...]:
    """The trackers of these names, none of them started.

    Args:
        names: Words of ``TRACKERS``; one that stands twice counts once.

    Returns:
        In order.

    Raises:
        InvalidInputError: For a name that is not known.
    """
    for name in names:
        if name not in TRACKERS:
            raise InvalidInputError(
                f"'trackers' names {name[:80]!r}{did_you_mean(name[:80], TRACKERS)}; known are "
                f"{', '.join(TRACKERS)}"
            )
    return tuple(TRACKERS[name]() for name in dict.fromkeys(names))
