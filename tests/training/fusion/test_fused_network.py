"""Gradients of a shared pass against those of each batch alone, for every method and a mix."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fixtures.fused_batches import gradients_of, make_micro_batch, require_same_as_alone
from fixtures.fused_jobs import METHODS, make_lora, make_prompt

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore
from luthier.training.fusion.fused_network import FusedNetwork, why_not_fused
from luthier.training.learner import Learner


@pytest.mark.parametrize("method", METHODS)
def test_two_of_a_method_get_the_gradients_that_each_gets_alone(
    tiny_causal_base: BaseModel, method: str
) -> None:
    base = tiny_causal_base
    require_same_as_alone(base, [make_micro_batch(base, method, number) for number in range(2)])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_all_methods_in_one_pass_get_the_gradients_that_each_gets_alone(
    tiny_causal_base: BaseModel, num_rows: int
) -> None:
    base = tiny_causal_base
    mix = [
        make_micro_batch(base, method, number, num_rows=num_rows)
        for number, method in enumerate(METHODS)
    ]
    require_same_as_alone(base, mix)


@pytest.mark.parametrize("word", ["int8", "nf4"])
def test_a_quantised_base_can_be_shared(tiny_causal_dir: Path, word: str) -> None:
    with BaseModelStore(BaseModelSources()).acquire(
        str(tiny_causal_dir), quantization=word
    ) as base:
        methods = ("lora", "dora", "lora_with_dropout", "prompt_tuning")
        require_same_as_alone(
            base, [make_micro_batch(base, method, n) for n, method in enumerate(methods)]
        )


def test_what_is_no_number_in_one_stays_there(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base
    mix = [make_micro_batch(base, method, number) for number, method in enumerate(METHODS)]
    expected = [(float(each.backward()), gradients_of(each)) for each in mix]
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
        found = gradients_of(each)
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
    first, second = (make_micro_batch(base, "lora", number) for number in range(2))
    network.add(first.learner)
    network.add(second.learner)
    network.remove(first.learner)
    part = network.pack(second)
    assert part is not None
    total, _ = network.forward([part])
    total.backward()
    gradients = gradients_of(second)
    second.backward()
    for name, expected in gradients_of(second).items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for _, parameter in first.learner.adapter.named_parameters())


def test_what_cannot_share_says_why(tiny_causal_base: BaseModel) -> None:
    base, options = tiny_causal_base, TrainingOptions()

    def reason(learner: Learner) -> str | None:
        return why_not_fused(base, learner)

    assert reason(Learner(base, make_lora(base), options)) is None
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
