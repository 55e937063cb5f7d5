"""Half precision around fp32 weights: accelerate's losses and gradients, torch's loss scale."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from fixtures.parallel_training import OPTIONS, RECORDS, make_full, make_lora, train
from torch import nn

from luthier.adapters.base import Adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StepEvent, TrainingCallback
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.loop import tune
from luthier.training.networks.mixed_precision import LossScale
from luthier.training.networks.network import TrainingNetwork

CPU = torch.device("cpu")
EXAMPLES = [
    Example(1, (5, 6, 7, 8, 9), (-100, -100, 7, 8, 9)),
    Example(2, (9, 30, 31), (-100, 30, 31)),
]


@pytest.fixture
def batch() -> TokenBatch:
    return collate(EXAMPLES, pad_token_id=0, is_seq2seq=False, device=CPU)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def _gradients(adapter: Adapter) -> torch.Tensor:
    return torch.cat([each.grad.flatten() for _, each in adapter.named_parameters()])  # type: ignore[union-attr]


def _ours(
    base: BaseModel, adapter: Adapter, batch: TokenBatch, **settings: Any
) -> tuple[float, torch.Tensor]:
    for _, parameter in adapter.named_parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    loss = TrainingNetwork(base, adapter, **settings).loss_sum(batch)
    loss.backward()
    return float(loss.detach()), _gradients(adapter)


def _of_accelerate(
    accelerator: Accelerator, model: nn.Module, adapter: Adapter, batch: TokenBatch
) -> tuple[float, torch.Tensor]:
    """transformers' own loss under accelerate's autocast; its mean over labels as a sum."""
    for _, parameter in adapter.named_parameters():
        parameter.grad = None
    prepared = accelerator.prepare_model(model)
    mean = prepared(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    loss = mean * batch.num_label_tokens
    accelerator.backward(loss)
    gradients = _gradients(adapter)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return float(loss.detach()), gradients


@pytest.mark.parametrize("make", [make_full, make_lora])
@pytest.mark.parametrize("packs_rows", [False, True])
def test_losses_and_gradients_are_those_of_accelerate(
    tiny_causal_base: BaseModel,
    batch: TokenBatch,
    accelerator: Accelerator,
    make: Any,
    packs_rows: bool,
) -> None:
    adapter = make(tiny_causal_base)
    plain_loss, plain = _ours(tiny_causal_base, adapter, batch, packs_rows=packs_rows)
    loss, gradients = _ours(
        tiny_causal_base, adapter, batch, packs_rows=packs_rows, computes_in=torch.bfloat16
    )
    model = adapter.tuned_model(tiny_causal_base.model)
    expected_loss, expected = _of_accelerate(accelerator, model, adapter, batch)
    # Packed, a matrix product sums up in another order, and bf16 keeps 8 bits of it.
    tolerance = 0.01 if packs_rows else 1e-6
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert float((gradients - expected).norm() / expected.norm()) < tolerance
    assert float((plain - expected).norm() / expected.norm()) > 0.02
    assert loss != plain_loss


def test_the_loss_scale_goes_as_torchs_does() -> None:
    ours, theirs = LossScale("float16"), torch.amp.GradScaler("cpu")
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    overflows = {0, 1, 7, 2500}
    for step in range(4600):
        theirs.scale(parameter.sum())
        is_bad = step in overflows
        parameter.grad = torch.tensor([torch.inf if is_bad else 1.0])
        theirs.step(optimizer)
        theirs.update()
        if is_bad:
            assert ours.lower()
        else:
            ours.note_good_update()
        assert ours.value == theirs.get_scale()
    copy = LossScale("float16")
    assert copy.restore({**ours.tensors(), "other": torch.ones(1)}).keys() == {"other"}
    assert copy.value == ours.value != LossScale("float16").value


def test_a_scale_of_one_is_not_lowered() -> None:
    scale = LossScale("float16")
    while scale.lower():
        pass
    assert scale.value == 1.0
    assert not LossScale("bfloat16").lower()
    assert LossScale("off").tensors() == {}


class _Norms(TrainingCallback):
    def __init__(self) -> None:
        self.found: list[float | None] = []

    def on_step(self, event: StepEvent) -> None:
        self.found.append(event.gradient_norm)


def test_fp16_learns_about_what_fp32_learns(tiny_causal_base: BaseModel) -> None:
    norms, plain_norms = _Norms(), _Norms()
    losses = []
    for word, callback in (("float16", norms), ("off", plain_norms)):
        result = tune(
            tiny_causal_base,
            make_lora(tiny_causal_base),
            RECORDS,
            options=replace(OPTIONS, mixed_precision=word),
            callbacks=(callback,),
        )
        losses.append([point.value for point in result.losses])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert norms.found == pytest.approx(plain_norms.found, rel=0.1)


def test_an_update_that_overflowed_changes_nothing_and_the_next_ones_learn(
    tiny_causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.training.networks.mixed_precision._FIRST_SCALE", 2.0**24)
    norms = _Norms()
    result = tune(
        tiny_causal_base,
        make_lora(tiny_causal_base),
        RECORDS,
        options=replace(OPTIONS, mixed_precision="float16", num_epochs=6),
        callbacks=(norms,),
    )
    assert norms.found[0] is None
    first_done = next(number for number, norm in enumerate(norms.found) if norm is not None)
    same = [point.value for point in result.losses][: first_done + 1]
    assert len(same) > 1
    assert result.losses[-1].value < same[0]


def test_the_scale_is_part_of_a_checkpoint(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    changes = {"mixed_precision": "float16", "num_epochs": 3}
    whole, _ = train(
        tiny_causal_base,
        "lora",
        run_folder=tmp_path,
        save_every_steps=1,
        keep_checkpoints=0,
        **changes,
    )
    checkpoint = tmp_path / "checkpoints" / "step-000000004"
    resumed, _ = train(tiny_causal_base, "lora", resume_from=checkpoint, **changes)
    assert resumed.content_hash() == whole.content_hash()


def test_mixed_precision_is_an_option() -> None:
    assert TrainingOptions().mixed_precision == "off"
