"""Predictions as files, and the rows at either end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fixtures.scored_rows import scored_row

from luthier.training.evaluation.evaluation import Evaluation, evaluate_rows
from luthier.training.evaluation.predictions import best_and_worst, write_predictions
from luthier.training.metrics.registry import make_metrics


def _evaluation(*names: str) -> Evaluation:
    rows = tuple(
        scored_row(row=row, loss_sum=loss, reference="a", generated=text)
        for row, loss, text in [(1, 4.0, "a"), (2, 2.0, "b"), (3, 6.0, None), (4, 1e9, "a")]
    )
    return evaluate_rows(rows, make_metrics(names), epoch=0, step=3)


@pytest.mark.parametrize(
    ("name", "best", "worst"), [("loss", [2, 1], [4, 3]), ("exact_match", [1, 4], [2, 4])]
)
def test_best_is_first_in_the_direction_of_the_metric(
    name: str, best: list[int], worst: list[int]
) -> None:
    ends = best_and_worst(_evaluation(name), count=2)
    assert [[row["row"] for row in rows] for rows in ends] == [best, worst]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_both_kinds_of_file_have_every_row_and_value(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"predictions.{suffix}"
    write_predictions(_evaluation("perplexity", "exact_match"), path)
    if suffix == "parquet":
        rows = pq.read_table(path).to_pylist()
        assert rows[3]["perplexity"] == math.inf
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows[3]["perplexity"] is None
    assert list(rows[0]) == [
        "row", "input", "reference", "generated", "perplexity", "exact_match",
    ]  # fmt: skip
    assert [row["exact_match"] for row in rows] == [1.0, 0.0, None, 1.0]
    assert rows[0]["perplexity"] == pytest.approx(math.exp(2))
