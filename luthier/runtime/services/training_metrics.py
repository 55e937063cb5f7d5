"""A training's progress file, as clients read it: one object per measured number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Event of the progress file to the name of what it measured.
MEASURES: Mapping[str, str] = {"step": "loss", "evaluation": "validation_loss"}


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """What a training has measured so far.

    Args:
        file: Written by ``training.callbacks.metrics_file``; need not exist yet.

    Returns:
        Objects with ``name``, ``step``, ``num_steps``, ``epoch``, ``value`` and the rest of the
        line, in the order in which they were measured.
    """
    try:
        # The last line may be half-written; without it the text ends with a line's end.
        lines = file.read_text("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return list(_metrics(map(json.loads, lines)))


def _metrics(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    num_steps = 0
    for event in events:
        kind = event.pop("event", "")
        num_steps = event.get("num_steps", num_steps)
        if kind in MEASURES:
            value = event.pop("loss")
            yield {"name": MEASURES[kind], "value": value, "num_steps": num_steps, **event}
