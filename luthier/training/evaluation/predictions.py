"""What the model made of each validation row, as files: all rows, and the best and the worst."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.training.evaluation.evaluation import Evaluation
from luthier.training.metrics.base import Metric

#: Rows at either end.
NUM_EXTREME_ROWS = 10


def prediction_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One mapping per row: ``row``, ``input``, ``reference``, ``generated``, and the value of each
    metric, None where it has none."""
    return [
        {
            "row": scored.row,
            "input": scored.input_text,
            "reference": scored.reference,
            "generated": scored.generated,
            **{metric.name: metric.of_row(scored) for metric in evaluation.metrics},
        }
        for scored in evaluation.rows
    ]


def best_and_worst(
    evaluation: Evaluation, *, count: int = NUM_EXTREME_ROWS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows at either end of the first metric.

    Args:
        evaluation: Any.
        count: Most rows at an end.

    Returns:
        The best rows, best first, and the worst rows, worst first, as ``prediction_rows`` gives
        them. Rows without a value are in neither.
    """
    metric = evaluation.metrics[0]
    rows = prediction_rows(evaluation)
    ordered = sorted(
        (row for row in rows if row[metric.name] is not None and not math.isnan(row[metric.name])),
        key=lambda row: row[metric.name],
        reverse=metric.higher_is_better,
    )
    return ordered[:count], ordered[::-1][:count]


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write all rows as parquet or JSON lines, by the suffix of ``path``.

    Args:
        evaluation: What to write.
        path: ``….parquet`` or ``….jsonl``; its folder must exist.
    """
    rows = prediction_rows(evaluation)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(evaluation.metrics)), path)


def write_extremes(evaluation: Evaluation, path: Path) -> None:
    """Write the best and the worst rows as JSON lines with a ``place``: best 1, 2, …, worst 1, …

    Args:
        evaluation: What to write.
        path: Its folder must exist.
    """
    lines = []
    for end, rows in zip(("best", "worst"), best_and_worst(evaluation), strict=True):
        for place, row in enumerate(rows, start=1):
            line = {"end": end, "place": place, **_finite(row)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _schema(metrics: Sequence[Metric]) -> pa.Schema:
    texts = [(name, pa.string()) for name in ("input", "reference", "generated")]
    values = [(metric.name, pa.float64()) for metric in metrics]
    return pa.schema([("row", pa.int64()), *texts, *values])


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
