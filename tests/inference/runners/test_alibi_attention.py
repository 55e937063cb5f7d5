from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fixtures.engine_answers import require_answers_of_transformers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.runners.alibi_attention import uses_alibi
from luthier.resources.base_model import BaseModel

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=400, hidden_size=36, n_layer=2, n_head=6, tie_word_embeddings=False)
    ),
    "mpt": lambda: MptForCausalLM(
        MptConfig(
            vocab_size=400, d_model=36, n_layers=2, n_heads=6, expansion_ratio=2, max_seq_len=512
        )
    ),
}


def base_of(name: str, like: BaseModel) -> BaseModel:
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return BaseModel.from_memory(model, like.tokenizer, name=f"tiny-{name}")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", MODELS)
def test_32_requests_at_once_equal_transformers_generate(name: str, causal_base: BaseModel) -> None:
    base = base_of(name, causal_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=50))  # prompts go in pieces
    requests = [
        GenerationRequest(
            tuple((7 * n + 11 * i) % 390 + 5 for i in range(2 + 2 * n)),
            SamplingParams(max_new_tokens=5 + n % 10),
        )
        for n in range(32)
    ]
    require_answers_of_transformers(engine, base, requests)
    engine.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model_itself_is_left_as_it_was(name: str, causal_base: BaseModel) -> None:
    base = base_of(name, causal_base)
    ids = torch.arange(5, 12)[None]
    before = base.model(input_ids=ids).logits
    BatchedEngine(base).close()
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_other_models_are_left_to_their_own_attention(causal_base: BaseModel) -> None:
    assert not uses_alibi(causal_base.model)
