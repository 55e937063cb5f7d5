"""MLflow: where its own environment variables say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.training.trackers.base import TrackedRun, Tracker

#: MLflow refuses longer values.
_MAX_PARAM_CHARS = 500


class MlflowTracker(Tracker):
    """Logs metrics and parameters into an experiment."""

    name: ClassVar[str] = "mlflow"

    def start(self, run: TrackedRun) -> None:
        """Open a run of the experiment ``project``."""
        import mlflow  # noqa: PLC0415 - an extra, and slow to import

        self._mlflow: Any = mlflow
        mlflow.set_experiment(run.project)
        mlflow.start_run(run_name=run.name)
        settings = {name: str(value)[:_MAX_PARAM_CHARS] for name, value in run.settings.items()}
        mlflow.log_params(settings)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """A metric each."""
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        """End the run."""
        self._mlflow.end_run()
