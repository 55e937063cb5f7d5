"""Loss and gradients against PEFT, against transformers' own loss, and fast against slow paths."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.soft_prompt import PromptPlace, SoftPrompt
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.networks.network import SHARED_PREFIX_MODEL_TYPES, TrainingNetwork

P = 9
CAUSAL_ROWS = [
    Example(1, (5, 6, 7, 8, 9), (-100, -100, -100, 8, 9)),
    Example(2, (5, 6, 3), (-100, 6, 3)),
    Example(3, (9, 8, 7, 6, 5, 4, 1), (-100, -100, -100, -100, -100, 4, 1)),
]
SEQ2SEQ_ROWS = [
    Example(1, (5, 6, 7, 8, 1), (9, 4, 1)),
    Example(2, (5, 1), (6, 3, 7, 8, 1)),
    Example(3, (9, 8, 7, 6, 5, 4, 1), (4, 1)),
]
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
    },
}
LLAMA_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def _batch(base: BaseModel) -> TokenBatch:
    is_seq2seq = base.kind == "seq2seq"
    return collate(
        SEQ2SEQ_ROWS if is_seq2seq else CAUSAL_ROWS,
        pad_token_id=base.pad_token_id,
        is_seq2seq=is_seq2seq,
        device=base.device,
    )


def _base_of_type(model_type: str, base: BaseModel, **settings: object) -> BaseModel:
    """A tiny random model of another architecture, with the fixture's tokenizer."""
    torch.manual_seed(1)
    sizes = CONFIGS.get(model_type, LLAMA_LIKE)
    tokens = {"vocab_size": 400, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **sizes, **tokens, **settings)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    return BaseModel.from_memory(model, base.tokenizer, name=model_type)


def _soft_prompt(base: BaseModel, *places: PromptPlace) -> SoftPrompt:
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randn(P * len(places), base.hidden_size, generator=generator)
    return SoftPrompt(prompt, kind=base.kind, places=places)


def _loss_and_gradients(
    network: TrainingNetwork, adapter: Adapter, batch: TokenBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean loss over the label tokens, and its gradient by parameter."""
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    loss = network.loss_sum(batch) / batch.num_label_tokens
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), dict(zip(names, gradients, strict=True))


def _peft_model(base: BaseModel, config: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(base.model), config).eval()


def _peft_kwargs(base: BaseModel, num_submodules: int) -> dict[str, Any]:
    return {
        "task_type": "CAUSAL_LM" if base.kind == "causal" else "SEQ_2_SEQ_LM",
        "num_virtual_tokens": P,
        "num_transformer_submodules": num_submodules,
    }


def _peft_loss(peft_model: PeftModel, base: BaseModel, **task: torch.Tensor) -> torch.Tensor:
    batch = _batch(base)
    loss: torch.Tensor = peft_model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        **task,
    ).loss
    return loss


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_loss_and_gradient_of_prompt_tuning_equal_those_of_peft(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    peft_model = _peft_model(base, PromptTuningConfig(**_peft_kwargs(base, 1)))
    embedding = peft_model.prompt_encoder["default"].embedding.weight
    expected = _peft_loss(peft_model, base)
    expected.backward()

    places: tuple[PromptPlace, ...] = ("decoder",) if base.kind == "causal" else ("encoder",)
    adapter = SoftPrompt(embedding, kind=base.kind, places=places)
    loss, gradients = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, _batch(base))

    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients["prompt_embeddings"], embedding.grad, rtol=1e-4, atol=1e-4)
    assert embedding.grad.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("base_name", "num_submodules"),
    [("tiny_causal_base", 1), ("tiny_seq2seq_base", 1), ("tiny_seq2seq_base", 2)],
)
def test_loss_and_gradient_of_multitask_prompt_tuning_equal_those_of_peft(
    base_name: str, num_submodules: int, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    config = MultitaskPromptTuningConfig(
        **_peft_kwargs(base, num_submodules), num_tasks=2, num_ranks=1
    )
    peft_model = _peft_model(base, config)
    encoder = peft_model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.prefix_task_cols.normal_()
        encoder.prefix_task_rows.normal_()
    batch = _batch(base)
    decoder_inputs = {}
    if num_submodules == 2:
        decoder_inputs["decoder_inputs_embeds"] = None
    expected = _peft_loss(
        peft_model, base, task_ids=torch.zeros(len(batch.rows), dtype=torch.long), **decoder_inputs
    )
    expected.backward()

    places: tuple[PromptPlace, ...] = ("encoder", "decoder")[:num_submodules]
    adapter = MultitaskSoftPrompt(
        encoder.embedding.weight,
        encoder.prefix_task_cols,
        encoder.prefix_task_rows,
        kind=base.kind,
        places=("decoder",) if base.kind == "causal" else places,
    )
    loss, gradients = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, batch)

    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)
    for name, theirs in (
        ("prompt_embeddings", encoder.embedding.weight),
        ("prefix_task_cols", encoder.prefix_task_cols),
        ("prefix_task_rows", encoder.prefix_task_rows),
    ):
        torch.testing.assert_close(gradients[name], theirs.grad, rtol=1e-4, atol=1e-4)
        assert theirs.grad.abs().max() > 1e-3


@pytest.mark.parametrize("model_type", sorted(SHARED_PREFIX_MODEL_TYPES))
def test_a_prompt_computed_once_gives_loss_and_gradient_of_one_in_every_row(
    model_type: str, tiny_causal_base: BaseModel
) -> None:
    base = _base_of_type(model_type, tiny_causal_base)
    adapter, batch = _soft_prompt(base, "decoder"), _batch(base)
    shared = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, batch)
    per_row = _loss_and_gradients(
        TrainingNetwork(base, adapter, shares_prefix=False), adapter, batch
    )
    expected = _brute_force(base.model, adapter, batch)
    for loss, gradients in (shared, per_row):
        torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            gradients["prompt_embeddings"], expected[1], rtol=1e-4, atol=1e-5
        )
    assert expected[1].abs().max() > 1e-4


def _brute_force(
    model: PreTrainedModel, adapter: SoftPrompt, batch: TokenBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits, transformers' own loss, each row alone and without padding."""
    prompt = adapter.prompt_embeddings
    total = torch.zeros(())
    for example in CAUSAL_ROWS:
        tokens = model.get_input_embeddings()(torch.tensor([example.input_ids]))
        logits = model(inputs_embeds=torch.cat([prompt[None], tokens], dim=1)).logits[0]
        predictions = logits[P - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(
            predictions, torch.tensor(example.labels), reduction="sum"
        )
    loss = total / batch.num_label_tokens
    (gradient,) = torch.autograd.grad(loss, prompt)
    return loss.detach(), gradient


def test_a_label_right_after_the_prompt_is_learned(tiny_causal_base: BaseModel) -> None:
    adapter = _soft_prompt(tiny_causal_base, "decoder")
    batch = collate(
        [Example(1, (5, 1), (5, 1)), Example(2, (6, 7, 1), (-100, 7, 1)), *CAUSAL_ROWS],
        pad_token_id=0,
        is_seq2seq=False,
        device=tiny_causal_base.device,
    )
    shared = TrainingNetwork(tiny_causal_base, adapter)
    per_row = TrainingNetwork(tiny_causal_base, adapter, shares_prefix=False)
    ours, theirs = (_loss_and_gradients(n, adapter, batch) for n in (shared, per_row))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1]["prompt_embeddings"], theirs[1]["prompt_embeddings"])


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_loss_and_gradient_of_full_fine_tuning_equal_those_of_transformers(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    reference = copy.deepcopy(base.model).requires_grad_(True)
    batch = _batch(base)
    expected = reference(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    expected.backward()

    adapter = FullWeights(base.model)
    loss, gradients = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, batch)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)
    for name, theirs in reference.named_parameters():
        if theirs.grad is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_checkpointing_changes_neither_loss_nor_gradient(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    single: BaseModel = request.getfixturevalue(base_name)
    # In double precision, where another order of adding up shows in no digit that is compared.
    base = replace(single, model=copy.deepcopy(single.model).double())
    adapter, batch = FullWeights(base.model), _batch(base)
    plain = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, batch)
    network = TrainingNetwork(base, adapter, gradient_checkpointing=True)
    checkpointed = _loss_and_gradients(network, adapter, batch)
    torch.testing.assert_close(checkpointed[0], plain[0])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(checkpointed[1][name], gradient, rtol=1e-9, atol=1e-11)


def test_scaled_logits_are_scaled_in_the_loss_too(tiny_causal_base: BaseModel) -> None:
    base = _base_of_type("granite", tiny_causal_base, logits_scaling=5.0)
    adapter, batch = _soft_prompt(base, "decoder"), _batch(base)
    loss, gradients = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, batch)
    expected = _brute_force(base.model, adapter, batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients["prompt_embeddings"], expected[1], rtol=1e-4, atol=1e-6)


def test_the_bases_dropout_is_off_unless_asked_for(tiny_causal_base: BaseModel) -> None:
    base = _base_of_type("gpt2", tiny_causal_base, resid_pdrop=0.5, embd_pdrop=0.5)
    adapter, batch = _soft_prompt(base, "decoder"), _batch(base)
    quiet = TrainingNetwork(base, adapter)
    noisy = TrainingNetwork(base, adapter, base_dropout=True)
    checkpointed = TrainingNetwork(base, adapter, gradient_checkpointing=True)
    assert quiet.loss_sum(batch) == quiet.loss_sum(batch)
    assert noisy.loss_sum(batch) != noisy.loss_sum(batch)
    torch.testing.assert_close(checkpointed.loss_sum(batch), quiet.loss_sum(batch))
    with noisy.evaluating():
        torch.testing.assert_close(noisy.loss_sum(batch), quiet.loss_sum(batch))
    assert noisy.loss_sum(batch) != noisy.loss_sum(batch)


def test_the_base_models_object_stays_as_it_is(tiny_causal_base: BaseModel) -> None:
    base = _base_of_type("gpt2", tiny_causal_base)
    before = {name: type(layer) for name, layer in base.model.named_modules()}
    adapter = _soft_prompt(base, "decoder")
    network = TrainingNetwork(base, adapter, base_dropout=True, gradient_checkpointing=True)
    network.loss_sum(_batch(base)).backward()
    assert {name: type(layer) for name, layer in base.model.named_modules()} == before
    assert not any(layer.training for layer in base.model.modules())
    assert not base.model.is_gradient_checkpointing
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("method", ["prompt_tuning", "full_fine_tuning"])
def test_a_base_in_half_precision_gives_about_the_same_loss_and_gradient(
    method: str, tiny_causal_base: BaseModel
) -> None:
    half = BaseModel.from_memory(
        copy.deepcopy(tiny_causal_base.model).to(torch.bfloat16),
        tiny_causal_base.tokenizer,
        name="half",
    )
    found = []
    for base in (tiny_causal_base, half):
        adapter: Adapter = (
            _soft_prompt(base, "decoder") if method == "prompt_tuning" else FullWeights(base.model)
        )
        loss, gradients = _loss_and_gradients(TrainingNetwork(base, adapter), adapter, _batch(base))
        gradient = torch.cat([g.flatten().float() for g in gradients.values() if g is not None])
        found.append((loss, gradient))
    (loss, gradient), (half_loss, half_gradient) = found
    assert half_loss.dtype is torch.float32
    torch.testing.assert_close(half_loss, loss, rtol=0.05, atol=0.05)
    assert torch.nn.functional.cosine_similarity(gradient, half_gradient, dim=0) > 0.95
