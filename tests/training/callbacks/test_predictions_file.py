"""Predictions of each evaluation in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from fixtures.scored_rows import scored_row

from luthier.training.callbacks.predictions_file import PredictionsFile
from luthier.training.evaluation.evaluation import evaluate_rows
from luthier.training.metrics.registry import make_metrics


def test_each_evaluation_has_its_folder_and_a_repeated_one_replaces_it(tmp_path: Path) -> None:
    callback = PredictionsFile(tmp_path / "predictions")
    for step in (2, 4, 4):
        rows = (scored_row(loss_sum=float(step)),)
        callback.on_scored_rows(evaluate_rows(rows, make_metrics(["loss"]), epoch=0, step=step))
    folders = sorted((tmp_path / "predictions").iterdir())
    assert [folder.name for folder in folders] == ["step-000000002", "step-000000004"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "predictions.parquet",
            "best_and_worst.jsonl",
            "manifest.json",
        }
