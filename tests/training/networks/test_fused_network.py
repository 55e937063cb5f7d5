"""Gradients of a shared pass against those of each batch alone, for every method and a mix."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fixtures.fused_jobs import METHODS, make_lora, make_prompt

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.learner import Learner, MicroBatch
from luthier.training.networks.embedding_noise import EmbeddingNoise
from luthier.training.networks.fused_network import FusedNetwork, why_not_fused


def _batch(seed: int, *, num_rows: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for row in range(num_rows):
        length = int(torch.randint(4, 14, (), generator=generator))
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        labels = [-100] * (length - 2) + ids[-2:]
        examples.append(Example(row + 1, tuple(ids), tuple(labels)))
    return collate(examples, pad_token_id=0, is_seq2seq=False, device=torch.device("cpu"))


def _micro_batch(base: BaseModel, method: str, number: int, *, num_rows: int = 3) -> MicroBatch:
    adapter = METHODS[method](base)
    for _, parameter in adapter.named_parameters():
        parameter.requires_grad_(True)
    loss_function = ("token_average", "sample_average")[number % 2]
    learner = Learner(base, adapter, TrainingOptions(seed=number, loss_function=loss_function))
    batch = _batch(number, num_rows=num_rows)
    return MicroBatch(learner, batch, units=5 + number, number=number)


def _gradients(micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
    """Moved away, so that the next backward starts from none."""
    found = {}
    for name, parameter in micro_batch.learner.adapter.named_parameters():
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


def _compare(base: BaseModel, micro_batches: list[MicroBatch]) -> None:
    """One shared pass and one pass each: the same losses and gradients."""
    network = FusedNetwork(base)
    for each in micro_batches:
        network.add(each.learner)
    parts = [network.pack(each) for each in micro_batches]
    total, loss_sums = network.forward([part for part in parts if part is not None])
    total.backward()
    together = [_gradients(each) for each in micro_batches]
    for each, loss_sum, gradients in zip(micro_batches, loss_sums, together, strict=True):
        torch.testing.assert_close(loss_sum, each.backward(), rtol=1e-4, atol=1e-5)
        for name, expected in _gradients(each).items():
            scale = float(expected.abs().max())
            assert scale > 0 or "lora_magnitude" in name
            difference = float((gradients[name] - expected).abs().max())
            assert difference <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("method", METHODS)
def test_two_of_a_method_get_the_gradients_that_each_gets_alone(
    tiny_causal_base: BaseModel, method: str
) -> None:
    base = tiny_causal_base
    _compare(base, [_micro_batch(base, method, number) for number in range(2)])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_all_methods_in_one_pass_get_the_gradients_that_each_gets_alone(
    tiny_causal_base: BaseModel, num_rows: int
) -> None:
    base = tiny_causal_base
    mix = [
        _micro_batch(base, method, number, num_rows=num_rows)
        for number, method in enumerate(METHODS)
    ]
    _compare(base, mix)


@pytest.mark.parametrize("word", ["int8", "nf4"])
def test_a_quantised_base_can_be_shared(tiny_causal_dir: Path, word: str) -> None:
    with BaseModelStore(BaseModelSources()).acquire(
        str(tiny_causal_dir), quantization=word
    ) as base:
        methods = ("lora", "dora", "lora_with_dropout", "prompt_tuning")
        _compare(base, [_micro_batch(base, method, n) for n, method in enumerate(methods)])


def test_what_is_no_number_in_one_stays_there(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base
    mix = [_micro_batch(base, method, number) for number, method in enumerate(METHODS)]
    expected = [(float(each.backward()), _gradients(each)) for each in mix]
    sick = {1, 3, 5}
    for index in sick:
        for _, parameter in mix[index].learner.adapter.named_parameters():
            parameter.data.fill_(float("nan"))
    network = FusedNetwork(base)
    for each in mix:
        network.add(each.learner)
    total, loss_sums = network.forward([part for each in mix if (part := network.pack(each))])
    total.backward()
    for index, (each, loss_sum) in enumerate(zip(mix, loss_sums, strict=True)):
        found = _gradients(each)
        if index in sick:
            assert loss_sum.isnan()
            continue
        loss, gradients = expected[index]
        assert abs(float(loss_sum) - loss) <= 1e-4 * loss
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_training_that_was_removed_leaves_the_layers(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base
    network = FusedNetwork(base)
    first, second = (_micro_batch(base, "lora", number) for number in range(2))
    network.add(first.learner)
    network.add(second.learner)
    network.remove(first.learner)
    part = network.pack(second)
    assert part is not None
    total, _ = network.forward([part])
    total.backward()
    gradients = _gradients(second)
    second.backward()
    for name, expected in _gradients(second).items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for _, parameter in first.learner.adapter.named_parameters())


def test_what_cannot_share_says_why(
    tiny_causal_base: BaseModel, tiny_seq2seq_base: BaseModel
) -> None:
    base, options = tiny_causal_base, TrainingOptions()

    def reason(learner: Learner, of: BaseModel = base) -> str | None:
        return why_not_fused(of, learner)

    assert reason(Learner(base, make_lora(base), options)) is None
    noisy = Learner(base, make_prompt(base), options, noise=EmbeddingNoise(5.0, seed=1))
    assert "noise" in str(reason(noisy))
    dropping = TrainingOptions(base_dropout=True)
    assert "dropout" in str(reason(Learner(base, make_prompt(base), dropping)))
    checkpointing = TrainingOptions(gradient_checkpointing=True)
    assert "checkpointing" in str(reason(Learner(base, make_prompt(base), checkpointing)))
    whole = FullWeights(copy.deepcopy(base.model))
    assert "full_fine_tuning" in str(reason(Learner(base, whole, options)))
    with_head = create_lora(
        base.model, LoraConfig(rank=2, alpha=4, modules_to_save=("lm_head",)), seed=0
    )
    assert "more of the base model" in str(reason(Learner(base, with_head, options)))
    t5 = tiny_seq2seq_base
    lora = create_lora(t5.model, LoraConfig(rank=2, alpha=4), seed=0)
    assert "padded" in str(reason(Learner(t5, lora, options), t5))
