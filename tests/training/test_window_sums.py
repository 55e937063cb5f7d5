"""What a window is, summed, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.learner import Learner, MicroBatch
from luthier.training.optimization.updater import Updater
from luthier.training.processes.parallel import ALONE
from luthier.training.window_sums import WindowCounts, WindowSums

OPTIONS = TrainingOptions()


def _learner(base: BaseModel) -> Learner:
    prompt = SoftPrompt(base.embedding_weight[20:23].clone(), kind="causal", places=("decoder",))
    return Learner(base, prompt, OPTIONS)


def _sums(learner: Learner, loss_function: str = "token_average") -> tuple[WindowSums, Updater]:
    updater = Updater(learner.adapter, OPTIONS)
    return WindowSums(updater, loss_function=loss_function, group=ALONE), updater


def _batch(base: BaseModel, *rows: Example) -> TokenBatch:
    return collate(rows, pad_token_id=base.pad_token_id, is_seq2seq=False, device=base.device)


@pytest.mark.parametrize(("loss_function", "units"), [("token_average", 3), ("sample_average", 2)])
def test_counts_are_those_of_all_batches(
    tiny_causal_base: BaseModel, loss_function: str, units: int
) -> None:
    sums, _ = _sums(_learner(tiny_causal_base), loss_function)
    batches = [
        _batch(tiny_causal_base, Example(1, (5, 6, 7), (-100, 6, 7))),
        _batch(tiny_causal_base, Example(2, (8, 9), (-100, 9)), Example(3, (4,), (-100,))),
    ]
    expected = WindowCounts(units=units, rows=3, input_tokens=6, label_tokens=3)
    assert sums.counts(batches, step=1) == expected


def test_a_window_without_labels_is_refused_by_step_and_rows(tiny_causal_base: BaseModel) -> None:
    sums, _ = _sums(_learner(tiny_causal_base))
    rows = [Example(row, (5,), (-100,)) for row in range(1, 9)]
    with pytest.raises(TrainingFailedError, match="step 4: no label token in rows 1, 2, 3, 4, 5 a"):
        sums.counts([_batch(tiny_causal_base, *rows)], step=4)


def test_a_loss_that_is_no_number_names_its_rows_and_drops_the_gradient(
    tiny_causal_base: BaseModel,
) -> None:
    learner = _learner(tiny_causal_base)
    sums, updater = _sums(learner)
    micro_batches = [
        MicroBatch(learner, _batch(tiny_causal_base, Example(row, (5, 6), (-100, 6))), 2, row)
        for row in (1, 2)
    ]
    with updater.requiring_gradients():
        losses = [each.backward() for each in micro_batches]
        total = float(losses[0] + losses[1])
        assert sums.loss(losses, micro_batches, step=1) == pytest.approx(total)
        losses[1] = torch.tensor(math.nan)
        with pytest.raises(TrainingFailedError, match="step 9: the loss is not finite in rows 2;"):
            sums.loss(losses, micro_batches, step=9)
        assert all(parameter.grad is None for parameter in updater.learned.values())


def test_a_gradient_that_is_no_number_names_its_rows(tiny_causal_base: BaseModel) -> None:
    learner = _learner(tiny_causal_base)
    sums, updater = _sums(learner)
    batch = _batch(tiny_causal_base, Example(1, (5, 6), (-100, 6)))
    good, bad = MicroBatch(learner, batch, 1, 0), MicroBatch(learner, batch, 0.0, 1)
    with updater.requiring_gradients():
        good.backward()
        norm = sums.gradient_norm([good], step=1)
        assert norm is not None and norm > 0
        bad.backward()
        with pytest.raises(TrainingFailedError, match="step 2: the gradient is not finite"):
            sums.gradient_norm([good, bad], step=2)
