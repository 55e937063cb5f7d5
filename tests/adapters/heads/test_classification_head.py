from __future__ import annotations

import copy

import pytest
import torch
from fixtures.lora_models import disturb, make_llama
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.heads.building import create_head
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.data_model.options.lora import LoraConfig

LABELS = ("ham", "spam", "other")
CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def model() -> PreTrainedModel:
    return make_llama()


@pytest.fixture(params=["alone", "lora"])
def head(request: pytest.FixtureRequest, model: PreTrainedModel) -> ClassificationHead:
    lora = LoraConfig(rank=2) if request.param == "lora" else None
    made = create_head(model, LABELS, lora=lora, seed=2)
    disturb(made, seed=2)
    return made


def scores_of(head: ClassificationHead, model: PreTrainedModel) -> torch.Tensor:
    tree = head.tuned_model(model).eval()
    logits: torch.Tensor = tree(input_ids=TOKENS).logits
    return logits


def test_scores_are_the_heads_product_with_the_hidden_states(
    head: ClassificationHead, model: PreTrainedModel
) -> None:
    tuned = model if head.body is None else head.body.tuned_model(model).eval()
    hidden = tuned.base_model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(scores_of(head, model), hidden @ head.score.T)


def test_the_base_model_stays_as_it_is(head: ClassificationHead, model: PreTrainedModel) -> None:
    before = model(input_ids=TOKENS).logits
    scores_of(head, model).sum().backward()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before, rtol=0, atol=0)
    assert model.get_output_embeddings().weight.shape[0] == 60
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_reach_head_and_lora(head: ClassificationHead, model: PreTrainedModel) -> None:
    scores_of(head, model).square().sum().backward()
    named = dict(head.named_parameters())
    assert list(named)[-1] == "score.weight"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())


def test_dropout_is_that_of_the_lora(model: PreTrainedModel) -> None:
    assert not create_head(model, LABELS, seed=2).has_dropout
    assert create_head(model, LABELS, lora=LoraConfig(dropout=0.1), seed=2).has_dropout


def test_a_change_is_seen_and_a_snapshot_stays(
    head: ClassificationHead, model: PreTrainedModel
) -> None:
    taken, before = head.snapshot(), scores_of(head, model).detach()
    assert taken.content_hash() == head.content_hash()
    with torch.no_grad():
        head.score.mul_(2)
    assert taken.content_hash() != head.content_hash()
    torch.testing.assert_close(scores_of(head, model), 2 * before)
    torch.testing.assert_close(scores_of(taken, model), before)


def test_labels_are_part_of_the_hash(head: ClassificationHead) -> None:
    other = ClassificationHead(labels=("a", "b", "c"), score=head.score, body=head.body)
    assert other.content_hash() != head.content_hash()


def test_a_copy_in_another_dtype_leaves_the_original_alone(
    head: ClassificationHead, model: PreTrainedModel
) -> None:
    assert head.to(device=CPU, dtype=torch.float32) is head
    moved = head.to(device=CPU, dtype=torch.float64)
    assert moved.score.dtype is torch.float64
    assert head.score.dtype is torch.float32
    exact = copy.deepcopy(model).double()
    torch.testing.assert_close(
        scores_of(moved, exact).float(), scores_of(head, model), atol=1e-5, rtol=1e-5
    )


def test_over_half_precision_the_head_computes_in_its_own(model: PreTrainedModel) -> None:
    half = model.to(torch.bfloat16)
    head = create_head(half, LABELS, lora=LoraConfig(rank=2), seed=2)
    assert head.score.dtype is torch.float32
    hidden = half.base_model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(scores_of(head, half), hidden.float() @ head.score.T)


def test_the_lora_keeps_its_own_learning_rates(model: PreTrainedModel) -> None:
    lora = LoraConfig(rank=2, lora_plus_ratio=16.0)
    head = create_head(model, LABELS, lora=lora, seed=2)
    factors = {name: head.learning_rate_factor(name) for name, _ in head.named_parameters()}
    assert factors.pop("score.weight") == 1.0
    assert {value for name, value in factors.items() if "lora_B" in name} == {16.0}


def test_a_layer_is_put_in_place_of_the_output_layer_only(
    head: ClassificationHead, model: PreTrainedModel
) -> None:
    names = {name for name, layer in head.tuned_model(model).named_modules() if name}
    assert {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)} <= names
