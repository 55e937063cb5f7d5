from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.model_families import tiny_model
from transformers import T5ForConditionalGeneration

from luthier.adapters.full_weights import FullWeights
from luthier.data_model.sampling import SamplingParams
from luthier.errors import NotSupportedError
from luthier.inference.base import GenerationRequest
from luthier.inference.prompts import prepare_prompt
from luthier.inference.runners.row_forward import (
    decoder_start_token_id,
    prior_token_ids,
    row_forward,
)
from luthier.resources.base_model import BaseModel

REQUEST = GenerationRequest((5, 6, 7, 8), SamplingParams())


def test_stepping_gives_the_logits_of_one_pass(base_model: BaseModel) -> None:
    prompt = prepare_prompt(base_model, REQUEST)
    forward = row_forward(base_model)
    with torch.inference_mode():
        steps = [forward.prefill(prompt, wants_prompt_logits=False)[-1]]
        steps += [forward.step(token_id) for token_id in (50, 60, 70)]
        ids = torch.tensor([REQUEST.input_ids])
        if base_model.kind == "causal":
            whole = base_model.model(torch.cat([ids, torch.tensor([[50, 60, 70]])], 1)).logits[
                0, 3:
            ]
        else:
            decoder_ids = torch.tensor([[0, 50, 60, 70]])
            whole = base_model.model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0]
    torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-4, atol=1e-4)


def test_the_penalty_counts_the_prompt_or_the_decoders_start(
    causal_base: BaseModel, seq2seq_base: BaseModel
) -> None:
    assert prior_token_ids(causal_base, prepare_prompt(causal_base, REQUEST)) == (5, 6, 7, 8)
    assert prior_token_ids(seq2seq_base, prepare_prompt(seq2seq_base, REQUEST)) == (0,)


def test_full_weights_answer_with_their_own_model(base_model: BaseModel) -> None:
    tuned = FullWeights(base_model.model)
    with torch.no_grad():
        for _, parameter in tuned.named_parameters():
            parameter.mul_(1.5)
    request = replace(REQUEST, adapter=tuned)
    with torch.inference_mode():
        prompt = prepare_prompt(base_model, request)
        first = row_forward(base_model).prefill(prompt, wants_prompt_logits=False)
        bare = row_forward(base_model).prefill(
            prepare_prompt(base_model, REQUEST), wants_prompt_logits=False
        )
    assert not torch.allclose(first, bare)


def test_a_seq2seq_model_that_names_no_start_is_refused(seq2seq_base: BaseModel) -> None:
    model = T5ForConditionalGeneration(seq2seq_base.model.config)
    model.config = type(model.config)(decoder_start_token_id=None)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(NotSupportedError, match="decoder_start_token_id"):
        decoder_start_token_id(replace(seq2seq_base, model=model))


@pytest.mark.parametrize("family", ["mamba", "bamba", "gpt2"])
def test_texts_go_on_from_the_states_of_others(family: str, causal_base: BaseModel) -> None:
    """Whatever a model keeps, and whether or not it counts positions; the reference is no cache."""
    base = BaseModel.from_memory(tiny_model(family), causal_base.tokenizer, name=family)
    forward = row_forward(base)
    with torch.inference_mode():
        forward.prefill(prepare_prompt(base, REQUEST), wants_prompt_logits=False)
        forward.steps([50, 60, 70], sources=[0, 0, 0])
        got = forward.steps([80, 90], sources=[2, 0])
        for logits, end in zip(got, ([70, 80], [50, 90]), strict=True):
            ids = torch.tensor([[*REQUEST.input_ids, *end]])
            expected = base.model(input_ids=ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_model_that_writes_one_text_at_a_time_refuses_several(causal_base: BaseModel) -> None:
    base = BaseModel.from_memory(tiny_model("rwkv"), causal_base.tokenizer, name="rwkv")
    forward = row_forward(base)
    with torch.inference_mode():
        forward.prefill(prepare_prompt(base, REQUEST), wants_prompt_logits=False)
        with pytest.raises(NotSupportedError, match="'rwkv' writes one text at a time"):
            forward.steps([50, 60], sources=[0, 0])


def test_an_encoder_that_wants_tokens_gets_them(seq2seq_base: BaseModel) -> None:
    base = BaseModel.from_memory(tiny_model("fsmt"), seq2seq_base.tokenizer, name="fsmt")
    with torch.inference_mode():
        got = row_forward(base).prefill(prepare_prompt(base, REQUEST), wants_prompt_logits=False)
        expected = base.model(
            input_ids=torch.tensor([REQUEST.input_ids]), decoder_input_ids=torch.tensor([[2]])
        ).logits[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
