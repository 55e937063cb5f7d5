"""Logits are compared with PEFT's on the same tiny model, and padded rows with lone ones."""

import copy

import pytest
import torch
from peft import (
    MultitaskPromptTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.soft_prompt import SoftPrompt

P = 5
TEXTS = ["Message: hello", "My package never arrived and nobody answers the phone", "x"]


def _rows(base, *, side="right"):
    encoded = [base.tokenizer(text)["input_ids"] for text in TEXTS]
    width = max(map(len, encoded))
    ids, mask = [], []
    for row in encoded:
        padding = [base.pad_token_id] * (width - len(row))
        zeros = [0] * len(padding)
        ids.append(row + padding if side == "right" else padding + row)
        mask.append([1] * len(row) + zeros if side == "right" else zeros + [1] * len(row))
    return torch.tensor(ids), torch.tensor(mask)


def _prompt_tuned(base, *, num_submodules=1, seed=0):
    """A PEFT model with a random prompt, and its prompt."""
    torch.manual_seed(seed)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM" if base.kind == "causal" else "SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        num_transformer_submodules=num_submodules,
    )
    peft_model = get_peft_model(copy.deepcopy(base.model), config).eval()
    return peft_model, peft_model.prompt_encoder["default"].embedding.weight.detach()


def _multitask_tuned(base, *, num_submodules=1, num_tasks=1, rank=1):
    torch.manual_seed(1)
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM" if base.kind == "causal" else "SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        num_transformer_submodules=num_submodules,
        num_tasks=num_tasks,
        num_ranks=rank,
    )
    peft_model = get_peft_model(copy.deepcopy(base.model), config).eval()
    encoder = peft_model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.prefix_task_cols.normal_()
        encoder.prefix_task_rows.normal_()
    return peft_model, (
        encoder.embedding.weight,
        encoder.prefix_task_cols,
        encoder.prefix_task_rows,
    )


def _logits(base, adapter, ids, mask, **decoder):
    inputs = prepare_inputs(base, adapter, ids, mask, **decoder)
    return inputs, inputs.model(**inputs.as_kwargs()).logits


def test_logits_of_a_prompt_tuned_causal_model_equal_those_of_peft(tiny_causal_base):
    peft_model, prompt = _prompt_tuned(tiny_causal_base)
    ids, mask = _rows(tiny_causal_base)
    adapter = SoftPrompt(prompt, kind="causal", places=("decoder",))
    inputs, ours = _logits(tiny_causal_base, adapter, ids, mask)
    theirs = peft_model(input_ids=ids, attention_mask=mask).logits
    seen = inputs.attention_mask.bool()
    torch.testing.assert_close(ours[seen], theirs[seen], atol=1e-4, rtol=0)
    assert inputs.num_prefix_positions == P


def test_logits_of_a_multitask_causal_model_equal_those_of_peft(tiny_causal_base):
    peft_model, tensors = _multitask_tuned(tiny_causal_base, num_tasks=3, rank=2)
    ids, mask = _rows(tiny_causal_base)
    for task in range(3):
        adapter = MultitaskSoftPrompt(*tensors, kind="causal", places=("decoder",), task_id=task)
        inputs, ours = _logits(tiny_causal_base, adapter, ids, mask)
        task_ids = torch.full((len(ids),), task)
        theirs = peft_model(input_ids=ids, attention_mask=mask, task_ids=task_ids).logits
        seen = inputs.attention_mask.bool()
        torch.testing.assert_close(ours[seen], theirs[seen], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_submodules", [1, 2])
def test_logits_of_a_prompt_tuned_seq2seq_model_equal_those_of_peft(
    num_submodules, tiny_seq2seq_base
):
    peft_model, prompt = _prompt_tuned(tiny_seq2seq_base, num_submodules=num_submodules)
    ids, mask = _rows(tiny_seq2seq_base)
    decoder_ids = torch.tensor([[0, 40, 41]] * len(ids))
    # PEFT makes 2·P rows by default and puts the first P before the encoder, the rest nowhere.
    adapter = SoftPrompt(prompt[:P], kind="seq2seq", places=("encoder",))
    _, ours = _logits(tiny_seq2seq_base, adapter, ids, mask, decoder_input_ids=decoder_ids)
    theirs = peft_model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_logits_of_encoder_and_decoder_prompts_equal_those_of_peft(tiny_seq2seq_base):
    peft_model, tensors = _multitask_tuned(tiny_seq2seq_base, num_submodules=2)
    ids, mask = _rows(tiny_seq2seq_base)
    decoder_ids = torch.tensor([[0, 40, 41]] * len(ids))
    adapter = MultitaskSoftPrompt(*tensors, kind="seq2seq", places=("encoder", "decoder"))
    inputs, ours = _logits(tiny_seq2seq_base, adapter, ids, mask, decoder_input_ids=decoder_ids)
    theirs = peft_model(
        input_ids=ids,
        attention_mask=mask,
        decoder_inputs_embeds=tiny_seq2seq_base.model.shared(decoder_ids),
        task_ids=torch.zeros(len(ids), dtype=torch.long),
    ).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert inputs.num_prefix_positions == P
    assert ours.shape[1] == P + 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_what_it_gives_alone(side, tiny_causal_base):
    base = tiny_causal_base
    _, prompt = _prompt_tuned(base)
    adapter = SoftPrompt(prompt, kind="causal", places=("decoder",))
    ids, mask = _rows(base, side=side)
    _, together = _logits(base, adapter, ids, mask)
    for row, text in enumerate(TEXTS):
        alone_ids = torch.tensor([base.tokenizer(text)["input_ids"]])
        _, alone = _logits(base, adapter, alone_ids, None)
        real = torch.cat((torch.ones(P, dtype=torch.bool), mask[row].bool()))
        torch.testing.assert_close(together[row][real], alone[0], atol=1e-4, rtol=0)


def test_without_an_adapter_logits_are_those_of_the_base(tiny_causal_base, tiny_seq2seq_base):
    ids, mask = _rows(tiny_causal_base)
    inputs, ours = _logits(tiny_causal_base, None, ids, mask)
    theirs = tiny_causal_base.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-4, rtol=0)
    assert inputs.num_prefix_positions == 0
    ids, mask = _rows(tiny_seq2seq_base)
    decoder_ids = torch.tensor([[0, 40]] * len(ids))
    _, ours = _logits(tiny_seq2seq_base, None, ids, mask, decoder_input_ids=decoder_ids)
    theirs = tiny_seq2seq_base.model(
        input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids
    ).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_virtual_tokens_alone_are_a_prompt(tiny_causal_base):
    _, prompt = _prompt_tuned(tiny_causal_base)
    adapter = SoftPrompt(prompt, kind="causal", places=("decoder",))
    no_ids = torch.empty(1, 0, dtype=torch.long)
    _, logits = _logits(tiny_causal_base, adapter, no_ids, None)
    assert logits.shape[1] == P


def test_gradients_reach_the_virtual_tokens_and_nothing_else(tiny_causal_base):
    _, prompt = _prompt_tuned(tiny_causal_base)
    adapter = SoftPrompt(prompt, kind="causal", places=("decoder",))
    ids, mask = _rows(tiny_causal_base)
    _, logits = _logits(tiny_causal_base, adapter, ids, mask)
    logits.square().mean().backward()
    assert adapter.prompt_embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny_causal_base.model.parameters())


def test_full_fine_tuning_runs_its_own_copy(tiny_causal_base):
    adapter = FullWeights(tiny_causal_base.model)
    ids, mask = _rows(tiny_causal_base)
    inputs, _ = _logits(tiny_causal_base, adapter, ids, mask)
    assert inputs.model is adapter.model
    assert inputs.model is not tiny_causal_base.model
