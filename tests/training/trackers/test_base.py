"""What every tracker promises."""

import sys

import pytest

from luthier.training.trackers.base import TrackedRun
from luthier.training.trackers.registry import TRACKERS


@pytest.mark.parametrize("name", TRACKERS)
def test_making_one_imports_nothing_and_starting_it_needs_the_package(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, package, None)
    tracker = TRACKERS[name]()
    with pytest.raises(ImportError):
        tracker.start(TrackedRun("project", "run", None, {}))
