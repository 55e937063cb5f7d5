"""One update: clip, step, and what a checkpoint needs of it; half precision, bad gradients."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import NotSupportedError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import list_checkpoints
from luthier.training.loop import tune
from luthier.training.optimization.updater import Updater

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(6)]
OPTIONS = TrainingOptions(num_epochs=2, learning_rate=0.01, batch_size=2, accumulate_steps=1)


def _prompt(base: BaseModel) -> SoftPrompt:
    tensor = torch.randn(4, base.hidden_size, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(tensor, kind="causal", places=("decoder",))


@pytest.mark.parametrize("optimizer", ["adam", "adadelta", "rmsprop", "sgd", "adamw"])
def test_every_optimizer_learns_and_resumes_bit_for_bit(
    optimizer: str, tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    options = dataclasses.replace(
        OPTIONS,
        optimizer=optimizer,
        learning_rate={"sgd": 0.05, "adadelta": 50.0}.get(optimizer, 0.05),
        num_epochs=4,
        save_every_steps=1,
        keep_checkpoints=0,
        warmup_epochs=0.5,
    )
    whole = _prompt(tiny_causal_base)
    result = tune(tiny_causal_base, whole, RECORDS, options=options, run_folder=tmp_path)
    assert result.losses[-1].value < 0.9 * result.losses[0].value
    resumed = _prompt(tiny_causal_base)
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[5]
    tune(tiny_causal_base, resumed, RECORDS, options=options, resume_from=checkpoint)
    assert resumed.content_hash() == whole.content_hash()


def test_full_fine_tuning_in_half_precision_follows_that_in_full(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    half_model = copy.deepcopy(tiny_causal_base.model).to(torch.bfloat16)
    half = BaseModel.from_memory(half_model, tiny_causal_base.tokenizer, name="half")
    # So small a rate that no single update changes a weight of 1 in bf16.
    options = dataclasses.replace(
        OPTIONS, learning_rate=2e-4, num_epochs=10, schedule="constant", weight_decay=0.0,
        save_every_steps=7, keep_checkpoints=0,
    )  # fmt: skip
    adapters = [FullWeights(tiny_causal_base.model), FullWeights(half_model)]
    for base, adapter in zip((tiny_causal_base, half), adapters, strict=True):
        tune(base, adapter, RECORDS, options=options, run_folder=tmp_path / base.name)
    name = "model.norm.weight"
    full, rounded = (adapter.model.state_dict()[name].float() for adapter in adapters)
    assert rounded.sub(1).abs().max() > 1e-3
    assert torch.nn.functional.cosine_similarity(full - 1, rounded - 1, dim=0) > 0.8

    resumed = FullWeights(half_model)
    checkpoint = list_checkpoints(tmp_path / "half" / "checkpoints")[14]
    tune(half, resumed, RECORDS, options=options, resume_from=checkpoint)
    for key, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, adapters[1].model.state_dict()[key]), key


class _BrokenBackward(torch.autograd.Function):
    """A pass that is fine forward, and has no gradient where ``is_bad``."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, is_bad: torch.Tensor) -> torch.Tensor:
        ctx.is_bad = is_bad
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient.masked_fill(ctx.is_bad[..., None], float("nan")), None


def test_a_gradient_that_is_no_number_fails_at_its_step_with_the_rows_of_its_batch(
    tiny_seq2seq_base: BaseModel,
) -> None:
    model = copy.deepcopy(tiny_seq2seq_base.model)
    base = BaseModel.from_memory(model, tiny_seq2seq_base.tokenizer, name="broken")
    (token,) = base.tokenizer("Q", add_special_tokens=False)["input_ids"]

    def broken(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        # Every input embedding passes here; the row with the token has no gradient.
        is_bad = (inputs[0] == token).any(dim=1, keepdim=True).expand_as(inputs[0])
        result: torch.Tensor = _BrokenBackward.apply(output, is_bad)
        return result

    adapter = FullWeights(model)
    adapter.model.get_input_embeddings().register_forward_hook(broken)
    records = [*RECORDS[:4], GenerationTrainRecord(input="Q", output="yes"), *RECORDS[4:]]
    before = copy.deepcopy(adapter.model.state_dict())
    options = dataclasses.replace(OPTIONS, batch_size=1, accumulate_steps=7)
    with pytest.raises(TrainingFailedError, match=r"step 1: the gradient is not finite in rows 5;"):
        tune(base, adapter, records, options=options)
    for key, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_the_norm_is_that_of_all_gradients_and_the_clip_scales_them_to_it(
    tiny_causal_base: BaseModel,
) -> None:
    adapter = _prompt(tiny_causal_base)
    options = dataclasses.replace(
        OPTIONS, optimizer="sgd", momentum=0.0, max_grad_norm=2.0, weight_decay=0.0
    )
    updater = Updater(adapter, options)
    (parameter,) = updater.learned.values()
    before = parameter.detach().clone()
    gradient = torch.full_like(parameter, 3.0)
    parameter.grad = gradient.clone()
    norm = updater.gradient_norm()
    assert norm == pytest.approx(float(gradient.norm()))
    updater.update(0.5, norm)
    torch.testing.assert_close(before - parameter, 0.5 * gradient * 2.0 / norm)
    assert parameter.grad is None


def test_eight_bit_without_a_gpu_is_refused_with_the_reason(tiny_causal_base: BaseModel) -> None:
    options = dataclasses.replace(OPTIONS, optimizer="adamw_8bit")
    with pytest.raises(NotSupportedError, match="'optimizer' adamw_8bit needs a GPU"):
        tune(tiny_causal_base, _prompt(tiny_causal_base), RECORDS, options=options)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_update_is_counted_as_a_change(optimizer: str, tiny_causal_base: BaseModel) -> None:
    """Adapters keep hashes and moved copies until the count of a tensor's changes grows."""
    prompt = _prompt(tiny_causal_base)
    updater = Updater(prompt, dataclasses.replace(OPTIONS, optimizer=optimizer))
    before = prompt.prompt_embeddings._version
    prompt.prompt_embeddings.grad = torch.ones_like(prompt.prompt_embeddings)
    updater.update(0.1, 1.0)
    assert prompt.prompt_embeddings._version > before
