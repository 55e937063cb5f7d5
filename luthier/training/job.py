"""What one training is given: an adapter, records, options, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.adapters.base import Adapter
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.training_options import TrainingOptions
from luthier.training.callbacks.base import TrainingCallback
from luthier.training.data.tokenization import TrainRecord
from luthier.training.evaluation.row_scoring import Generate
from luthier.training.metrics.ai_judge import Judge


def never() -> bool:
    """False: nobody asks the training to stop."""
    return False


@dataclass(frozen=True, eq=False)
class TuningJob:
    """The arguments of ``loop.tune`` beside the base model.

    Args:
        adapter: What is learned. After an error it holds a half-trained state: drop it. To go on
            from an earlier adapter with a new optimizer, hand in what ``load_adapter`` gives.
        train: Records, read once.
        options: Hyperparameters. ``torch_dtype``, ``device``, and whether ``mixed_precision`` is
            worth it, were decided with the base model.
        validation: Records that are evaluated but not learned; None or empty for none.
        callbacks: Told what happens; a progress bar is added unless ``silence_progress_bars``.
        should_stop: Asked before every batch.
        dataset: How records become text and what is drawn anew in each epoch; the defaults if None.
            Its files, columns and split are ``load_dataset``'s business.
        generate: Writes texts with the base model and the adapter as they are at that moment; for
            metrics that compare texts.
        judge: Scores texts, for the metric ``ai_judge``.
        run_folder: Gets ``checkpoints/`` and ``predictions/``; None writes none.
        resume_from: A checkpoint, or a folder in which the newest whole one is taken. The training
            goes on from there as if it had never stopped; records, options, base model and kind of
            adapter must be those it was started with.
        backup_folder: Gets a copy of each checkpoint.
    """

    adapter: Adapter
    train: Iterable[TrainRecord]
    options: TrainingOptions
    validation: Iterable[TrainRecord] | None = None
    callbacks: Sequence[TrainingCallback] = ()
    should_stop: Callable[[], bool] = never
    dataset: DatasetOptions | None = None
    generate: Generate | None = None
    judge: Judge | None = None
    run_folder: Path | None = None
    resume_from: Path | None = None
    backup_folder: Path | None = None
