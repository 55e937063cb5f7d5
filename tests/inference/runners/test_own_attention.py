"""Models whose layers attend by code of their own; the reference is transformers' generate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fixtures.engine_answers import require_answers_of_transformers
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    XGLMConfig,
    XGLMForCausalLM,
)

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.runners.own_attention import has_own_attention
from luthier.resources.base_model import BaseModel

IDS = {"bos_token_id": 1, "eos_token_id": 1}


def falcon(**changes: object) -> PreTrainedModel:
    sizes = {"vocab_size": 400, "hidden_size": 36, "num_hidden_layers": 2}
    return FalconForCausalLM(
        FalconConfig(**sizes, num_attention_heads=6, hidden_dropout=0.0, **IDS, **changes)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "falcon, ALiBi": lambda: falcon(
        alibi=True, multi_query=False, new_decoder_architecture=False, bias=True
    ),
    "falcon, ALiBi, one key head": lambda: falcon(
        alibi=True, multi_query=True, new_decoder_architecture=False
    ),
    "falcon, rotary, groups": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "gpt-j": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=400, n_embd=36, n_layer=2, n_head=3, rotary_dim=8, **IDS)
    ),
    "gpt-neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=400,
            hidden_size=36,
            num_layers=4,
            num_heads=3,
            attention_types=[[["global", "local"], 2]],
            window_size=16,
            max_position_embeddings=512,
            **IDS,
        )
    ),
    "xglm": lambda: XGLMForCausalLM(
        XGLMConfig(
            vocab_size=400,
            d_model=36,
            ffn_dim=48,
            num_layers=2,
            attention_heads=3,
            max_position_embeddings=512,
            pad_token_id=0,
            **IDS,
        )
    ),
    "codegen": lambda: CodeGenForCausalLM(
        CodeGenConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **IDS)
    ),
}


def base_of(name: str, like: BaseModel) -> BaseModel:
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return BaseModel.from_memory(model, like.tokenizer, name=f"tiny-{name}")


@pytest.mark.parametrize("name", MODELS)
def test_requests_of_any_length_at_once_equal_transformers_generate(
    name: str, causal_base: BaseModel
) -> None:
    base = base_of(name, causal_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=80))  # prompts go in pieces
    requests = [
        GenerationRequest(
            tuple((7 * n + 11 * i) % 390 + 5 for i in range(length)),
            SamplingParams(max_new_tokens=5 + n % 7, num_beams=1 + 2 * (n % 5 == 4)),
        )
        for n, length in enumerate([*range(2, 40, 2), 300, 340])  # beyond 256 bfloat16 rounds
    ]
    require_answers_of_transformers(engine, base, requests)
    assert engine._whole_models is None
    engine.close()


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_the_models_own(name: str, causal_base: BaseModel) -> None:
    base = base_of(name, causal_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=16))  # the prompt goes in pieces
    ids = tuple((11 * i) % 390 + 5 for i in range(60))
    sampling = SamplingParams(max_new_tokens=1, input_tokens=True, token_logprobs=True)
    chunks = list(engine.submit(GenerationRequest(ids, sampling)))
    engine.close()
    got = torch.tensor([token.logprob for token in chunks[0].input_tokens[1:]])
    logits = base.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    expected = logits.log_softmax(-1)[range(59), ids[1:]]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model_itself_is_left_as_it_was(name: str, causal_base: BaseModel) -> None:
    base = base_of(name, causal_base)
    ids = torch.arange(5, 12)[None]
    before = base.model(input_ids=ids).logits
    BatchedEngine(base).close()
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_other_models_are_left_to_their_own_ways(causal_base: BaseModel) -> None:
    assert not has_own_attention(causal_base.model)
