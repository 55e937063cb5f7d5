"""The progress bar says where the training is."""

import io

import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.progress_bar import ProgressBar
from luthier.training.loop import tune

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(6)]


def test_the_bar_shows_batches_epoch_and_losses(tiny_causal_base: BaseModel) -> None:
    stream = io.StringIO()
    result = tune(
        tiny_causal_base,
        SoftPrompt(torch.ones(2, tiny_causal_base.hidden_size), kind="causal", places=("decoder",)),
        RECORDS,
        validation=RECORDS[:2],
        options=TrainingOptions(num_epochs=2, batch_size=2, accumulate_steps=2),
        callbacks=[ProgressBar(stream)],
    )
    last = stream.getvalue().split("\r")[-1]
    assert "6/6" in last
    assert "epoch 2/2" in last
    assert f"loss={result.losses[-1].value:.4f}" in last
    assert f"validation={result.validation_losses[-1].value:.4f}" in last


def test_closing_a_bar_that_never_started_is_harmless() -> None:
    ProgressBar(io.StringIO()).close()
