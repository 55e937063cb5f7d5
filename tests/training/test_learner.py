"""Gradients of one micro-batch, against PyTorch's own cross-entropy on the model's logits."""

import pytest
import torch

from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.learner import Learner, MicroBatch


def _batch(base: BaseModel) -> TokenBatch:
    rows = [
        Example(1, (5, 6, 7, 8), (-100, -100, 7, 8)),
        Example(2, (9, 10, 11), (-100, -100, 11)),
    ]
    return collate(rows, pad_token_id=base.pad_token_id, is_seq2seq=False, device=base.device)


@pytest.mark.parametrize("loss_function", ["token_average", "sample_average"])
def test_loss_and_gradient_are_those_of_the_models_own_logits(
    tiny_causal_base: BaseModel, loss_function: str
) -> None:
    base = tiny_causal_base
    prompt = SoftPrompt(base.embedding_weight[20:24], kind="causal", places=("decoder",))
    prompt.prompt_embeddings.requires_grad_(True)
    learner = Learner(base, prompt, TrainingOptions(loss_function=loss_function))
    batch = _batch(base)
    loss_sum = MicroBatch(learner, batch, units=5, number=0).backward()
    found = prompt.prompt_embeddings.grad

    expected = torch.zeros(())
    virtual = prompt.prompt_embeddings.detach().clone().requires_grad_(True)
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        embeddings = torch.cat([virtual, base.model.get_input_embeddings()(ids)])
        logits = base.model(inputs_embeds=embeddings[None]).logits[0, 3:-1]
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        num_labels = int((labels != -100).sum())
        expected = expected + losses.sum() / (
            num_labels if loss_function == "sample_average" else 1
        )
    (expected_gradient,) = torch.autograd.grad(expected / 5, virtual)
    torch.testing.assert_close(loss_sum, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected_gradient, rtol=1e-4, atol=1e-6)


def test_dropout_is_a_function_of_seed_and_number(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base

    def loss(seed: int, number: int) -> float:
        adapter = create_lora(base.model, LoraConfig(rank=4, alpha=8, dropout=0.5), seed=1)
        with torch.no_grad():
            for _, parameter in adapter.named_parameters():
                parameter.fill_(0.05)
        learner = Learner(base, adapter, TrainingOptions(seed=seed))
        for _, parameter in adapter.named_parameters():
            parameter.requires_grad_(True)
        before = torch.random.get_rng_state()
        found = MicroBatch(learner, _batch(base), units=3, number=number).backward()
        assert torch.equal(torch.random.get_rng_state(), before)
        return float(found)

    assert loss(3, 1) == loss(3, 1)
    assert len({loss(3, 1), loss(3, 2), loss(5, 1)}) == 3
