"""Writes the course of a training as JSON lines: one object per event, readable while it runs."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from luthier.files.atomic_folder import write_file_atomically
from luthier.training.callbacks.base import EpochEvent, StartEvent, StepEvent, TrainingCallback
from luthier.training.results import EvaluationPoint, TrainingResult


class MetricsFile(TrainingCallback):
    """One line per event: ``{"event": "step", "step": 1, "loss": 6.9, ..., "timestamp": ...}``.

    Events are ``start``, ``step``, ``evaluation``, ``epoch`` and ``finish``; a file without
    ``finish`` belongs to a training that runs, failed or was cancelled. Each line is flushed, so a
    reader sees whole lines only. A training that goes on from a checkpoint keeps the lines up to
    that step and adds a ``start`` of its own.

    Args:
        path: Replaced if it exists and the training is new; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIOWrapper | None = None

    def on_start(self, event: StartEvent) -> None:
        """Open the file and write the plan and the options."""
        if event.first_step and self._path.exists():
            kept = _lines_until(self._path, event.first_step)
            write_file_atomically(self._path, kept.encode("utf-8"))
            self._file = self._path.open("a", encoding="utf-8")
        else:
            self._file = self._path.open("w", encoding="utf-8")
        self._write("start", dataclasses.asdict(event))

    def on_step(self, event: StepEvent) -> None:
        """Write loss, learning rate and counts of one update."""
        self._write("step", dataclasses.asdict(event))

    def on_evaluation(self, point: EvaluationPoint) -> None:
        """Write the validation loss and the other metrics; null where one has no finite value."""
        values = {"loss": point.value, **point.metrics}
        finite = {name: _finite(value) for name, value in values.items()}
        self._write("evaluation", {"epoch": point.epoch, "step": point.step, **finite})

    def on_epoch_end(self, event: EpochEvent) -> None:
        """Write the epoch's mean loss."""
        self._write("epoch", dataclasses.asdict(event))

    def on_finish(self, result: TrainingResult) -> None:
        """Write the totals."""
        totals = ("num_rows", "num_steps", "num_input_tokens", "num_label_tokens", "seconds")
        self._write("finish", {name: getattr(result, name) for name in totals})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: str, values: dict[str, object]) -> None:
        if self._file is None:
            return
        line = {"event": event, **values, "timestamp": datetime.now(UTC).isoformat()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _lines_until(path: Path, step: int) -> str:
    """The whole lines of events up to an update; those after it will happen again."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut off when the process was killed
            continue
        if isinstance(event, dict) and event.get("event") != "finish" and _step_of(event) <= step:
            kept.append(line + "\n")
    return "".join(kept)


def _step_of(event: dict[str, object]) -> float:
    found = event.get("first_step" if event.get("event") == "start" else "step", 0)
    return found if isinstance(found, int | float) else 0
