"""Keeps what the model made of the validation rows, per evaluation."""

from __future__ import annotations

from pathlib import Path

from luthier.files.atomic_folder import write_folder_atomically, write_manifest
from luthier.training.callbacks.base import TrainingCallback
from luthier.training.evaluation.evaluation import Evaluation
from luthier.training.evaluation.predictions import write_extremes, write_predictions

PREDICTIONS_FOLDER = "predictions"


class PredictionsFile(TrainingCallback):
    """Writes ``step-…/predictions.parquet`` and ``step-…/best_and_worst.jsonl``, both or none.

    Args:
        folder: Made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_scored_rows(self, evaluation: Evaluation) -> None:
        """Write the rows; those of an earlier run at this step are replaced."""
        target = self._folder / f"step-{evaluation.point.step:09d}"
        with write_folder_atomically(target, overwrite=True) as partial:
            write_predictions(evaluation, partial / "predictions.parquet")
            write_extremes(evaluation, partial / "best_and_worst.jsonl")
            write_manifest(partial, step=evaluation.point.step)
