"""TensorBoard's own reader finds what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune
from luthier.training.trackers.base import TrackedRun
from luthier.training.trackers.tensorboard import TensorBoardTracker

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(4)]


def test_losses_are_in_the_event_file(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    adapter = SoftPrompt(
        torch.ones(2, tiny_causal_base.hidden_size), kind="causal", places=("decoder",)
    )
    options = TrainingOptions(
        num_epochs=1, batch_size=2, accumulate_steps=1, trackers=("tensorboard",)
    )
    result = tune(tiny_causal_base, adapter, RECORDS, options=options, run_folder=tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [each.step for each in scalars] == [1, 2]
    assert [each.value for each in scalars] == pytest.approx(
        [point.value for point in result.losses]
    )


def test_without_a_folder_it_says_so() -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(InvalidInputError, match="needs a run folder"):
        TensorBoardTracker().start(TrackedRun("p", "n", None, {}))
