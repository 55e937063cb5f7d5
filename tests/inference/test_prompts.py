from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import LEDConfig, LEDForConditionalGeneration

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import GenerationRequest
from luthier.inference.prompts import prepare_prompt
from luthier.resources.base_model import BaseModel

MakePrompt = Callable[..., Adapter]


def request_of(num_tokens: int, adapter: Adapter | None = None) -> GenerationRequest:
    return GenerationRequest(
        tuple(10 + index % 300 for index in range(num_tokens)), SamplingParams(), adapter
    )


def test_room_is_what_prompt_and_virtual_tokens_leave(
    causal_base: BaseModel, make_prompt: MakePrompt
) -> None:
    base = replace(causal_base, max_positions=20)
    assert prepare_prompt(base, request_of(7)).room == 13
    adapter = make_prompt(base, seed=1, num_virtual_tokens=4)
    prompt = prepare_prompt(base, request_of(7, adapter))
    assert prompt.room == 9
    assert prompt.num_decoder_virtual_tokens == 4


def test_a_model_without_largest_position_has_endless_room(causal_base: BaseModel) -> None:
    assert prepare_prompt(replace(causal_base, max_positions=None), request_of(5000)).room is None


def test_the_last_prompt_that_fits_leaves_one_token(causal_base: BaseModel) -> None:
    base = replace(causal_base, max_positions=8)
    assert prepare_prompt(base, request_of(7)).room == 1
    with pytest.raises(InvalidInputError, match="8 tokens"):
        prepare_prompt(base, request_of(8))


def test_a_seq2seq_encoder_may_be_filled_and_its_decoder_counts_alone(
    seq2seq_base: BaseModel, make_prompt: MakePrompt
) -> None:
    base = replace(seq2seq_base, max_positions=8)
    assert prepare_prompt(base, request_of(8)).room == 7
    adapter = make_prompt(base, seed=1, num_virtual_tokens=3, parts="both")
    prompt = prepare_prompt(base, request_of(5, adapter))
    assert (prompt.num_encoder_virtual_tokens, prompt.num_decoder_virtual_tokens) == (3, 3)
    assert prompt.room == 4
    with pytest.raises(InvalidInputError, match="6 tokens and 3 virtual tokens"):
        prepare_prompt(base, request_of(6, adapter))


def test_an_encoder_that_reads_more_than_its_decoder_writes(seq2seq_base: BaseModel) -> None:
    config = LEDConfig(
        vocab_size=400,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        max_encoder_position_embeddings=40,
        max_decoder_position_embeddings=12,
    )
    model = LEDForConditionalGeneration(config)
    base = BaseModel.from_memory(model, seq2seq_base.tokenizer, name="led")
    assert prepare_prompt(base, request_of(40)).room == 11
    with pytest.raises(InvalidInputError, match=r"has 41 tokens.*context of 40 tokens"):
        prepare_prompt(base, request_of(41))


def test_an_empty_prompt_without_a_beginning_token_is_refused(causal_base: BaseModel) -> None:
    class NoBeginning:
        bos_token_id = None

    base = replace(causal_base, tokenizer=NoBeginning())
    with pytest.raises(InvalidInputError, match="the prompt is empty"):
        prepare_prompt(base, request_of(0))


def test_the_soft_prompt_is_detached(causal_base: BaseModel, make_prompt: MakePrompt) -> None:
    prompt = prepare_prompt(causal_base, request_of(1, make_prompt(causal_base, seed=1)))
    assert prompt.soft_prompt.decoder is not None
    assert not prompt.soft_prompt.decoder.requires_grad
