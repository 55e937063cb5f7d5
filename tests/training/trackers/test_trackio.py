"""What the package is told; it is replaced by one that writes it down."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.fake_packages import install

from luthier.training.trackers.base import TrackedRun
from luthier.training.trackers.trackio import TrackioTracker

RUN = TrackedRun("project", "run", Path("folder"), {"batch_size": 4, "long": "x" * 600})


def test_a_run_is_opened_filled_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(monkeypatch, "trackio")
    tracker = TrackioTracker()
    tracker.start(RUN)
    tracker.log({"train/loss": 0.5}, step=3)
    tracker.finish()
    config = {"batch_size": 4, "long": "x" * 600}
    opening = {"project": "project", "name": "run", "config": config}
    assert package.calls == [
        ("init", (), opening),
        ("log", ({"train/loss": 0.5},), {"step": 3}),
        ("finish", (), {}),
    ]
