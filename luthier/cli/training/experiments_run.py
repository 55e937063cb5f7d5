"""``luthier train a.yml b.yml``: several experiments in one process of this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.cli.training.experiment_process import run_in_child
from luthier.cli.training.experiment_run import LINE_STEPS, import_lines
from luthier.cli.training.experiment_source import ExperimentSource
from luthier.errors import TrainingFailedError


def run_experiments(
    sources: Sequence[ExperimentSource], *, base_models_dir: Path | None, as_json: bool
) -> None:
    """Train all; those over one base model share its passes.

    Args:
        sources: At least two.
        base_models_dir: Folder of base models; None keeps the environment's.
        as_json: Print JSON on stdout, also of those that failed.

    Raises:
        LuthierError: If an option of one is wrong; then none is run.
        TrainingFailedError: If some failed; the models of the others are there.
    """
    for source in sources:
        if source.imported is not None:
            for line in import_lines(source.imported):
                print(line, file=sys.stderr)
        source.options.validate()
        source.options.require_named()
    done = run_in_child(
        "train_many",
        {"experiments": [source.options.to_dict() for source in sources]},
        base_models_dir=base_models_dir,
        on_event=_Progress().show,
    )
    entries = done["experiments"]
    if as_json:
        print(json.dumps(entries, ensure_ascii=False))
    else:
        for entry in entries:
            if "path" in entry:
                print(f"tuned {entry['experiment']}: {entry['path']}")
    failed = [f"{entry['experiment']}: {entry['message']}" for entry in entries if "code" in entry]
    if failed:
        raise TrainingFailedError(
            f"{len(failed)} of {len(entries)} experiments failed: {'; '.join(failed)}"
        )


class _Progress:
    """Lines on stderr, each with the experiment's name."""

    def __init__(self) -> None:
        self._num_steps: dict[str, int] = {}

    def show(self, event: Mapping[str, Any]) -> None:
        line = self._line(event)
        if line is not None:
            print(f"{event['experiment']}: {line}", file=sys.stderr, flush=True)

    def _line(self, event: Mapping[str, Any]) -> str | None:
        kind, name = event["event"], event["experiment"]
        if kind == "start":
            self._num_steps[name] = event["num_steps"]
            return f"{event['num_rows']} rows, {event['num_steps']} updates"
        if kind == "alone":
            return f"trained by itself: {event['reason']}"
        if kind == "evaluation":
            return f"epoch {event['epoch'] + 1}: validation loss {event['value']:.4f}"
        if kind == "ended":
            return f"failed: {event['message']}" if "code" in event else "done"
        num_steps = self._num_steps[name]
        if event["step"] % LINE_STEPS and event["step"] != num_steps:
            return None
        return f"step {event['step']}/{num_steps}  loss {event['loss']:.4f}"
