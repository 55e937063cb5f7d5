"""Token-averaged and sample-averaged loss against their definitions."""

from __future__ import annotations

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.loop import tune
from luthier.training.objective import label_weights, num_units

LABELS = torch.tensor([[-100, 5, 6], [-100, -100, 7], [-100, -100, -100]])
BATCH = TokenBatch((1, 2, 3), LABELS.clamp(min=0), torch.ones_like(LABELS), LABELS, 9, 3)


def test_each_label_counts_its_share_of_its_row() -> None:
    weights = label_weights(BATCH, "sample_average")
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 1.0]
    assert num_units(BATCH, "sample_average") == 2


def test_each_token_counts_the_same_by_default() -> None:
    assert label_weights(BATCH, "token_average") is None
    assert num_units(BATCH, "token_average") == 3


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_the_sample_average_is_the_mean_of_the_losses_of_each_row_alone(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    records = [
        GenerationTrainRecord(input="a", output="yes"),
        GenerationTrainRecord(input="b", output="no, certainly not, never"),
        GenerationTrainRecord(input="c", output="perhaps"),
    ]

    def first_loss(rows: list[GenerationTrainRecord], loss_function: str, batch_size: int) -> float:
        tensor = torch.randn(4, base.hidden_size, generator=torch.Generator().manual_seed(1))
        place = "decoder" if base.kind == "causal" else "encoder"
        options = TrainingOptions(
            num_epochs=1, batch_size=batch_size, accumulate_steps=3, loss_function=loss_function
        )
        adapter = SoftPrompt(tensor, kind=base.kind, places=(place,))  # type: ignore[arg-type]
        return tune(base, adapter, rows, options=options).losses[0].value

    alone = [first_loss([record], "token_average", 1) for record in records]
    assert first_loss(records, "sample_average", 3) == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert first_loss(records, "sample_average", 1) == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert first_loss(records, "token_average", 3) != pytest.approx(sum(alone) / 3, rel=1e-3)
