"""What the package is told; it is replaced by one that writes it down."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.fake_packages import install

from luthier.training.trackers.base import TrackedRun
from luthier.training.trackers.mlflow import MlflowTracker

RUN = TrackedRun("project", "run", Path("folder"), {"batch_size": 4, "long": "x" * 600})


def test_a_run_is_opened_filled_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(monkeypatch, "mlflow")
    tracker = MlflowTracker()
    tracker.start(RUN)
    tracker.log({"train/loss": 0.5}, step=3)
    tracker.finish()
    assert package.calls == [
        ("set_experiment", ("project",), {}),
        ("start_run", (), {"run_name": "run"}),
        ("log_params", ({"batch_size": "4", "long": "x" * 500},), {}),
        ("log_metrics", ({"train/loss": 0.5},), {"step": 3}),
        ("end_run", (), {}),
    ]
