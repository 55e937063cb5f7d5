from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from luthier.errors import NotSupportedError
from luthier.inference.runners.packable import (
    require_packable,
    same_windows,
    window_of_all,
    windows_in,
)
from luthier.resources.base_model import BaseModel

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def base_of(model: PreTrainedModel, like: BaseModel) -> BaseModel:
    return BaseModel.from_memory(model, like.tokenizer, name="tiny")


def llama4(**changes: Any) -> PreTrainedModel:
    sizes = {**SIZES, "intermediate_size_mlp": 16, "num_local_experts": 2, "pad_token_id": 0}
    return Llama4ForCausalLM(Llama4TextConfig(**sizes, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "layers of sorts"),
        ({"layer_types": ["full_attention"] * 2}, "positions that it counts itself"),
    ],
)
def test_what_short_texts_do_not_show_is_refused_by_what_a_model_says(
    changes: dict[str, Any], reason: str, causal_base: BaseModel
) -> None:
    with pytest.raises(NotSupportedError, match=reason):
        require_packable(base_of(llama4(**changes), causal_base))


def test_windows_are_those_of_the_configuration(causal_base: BaseModel) -> None:
    mistral = base_of(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), causal_base)
    assert windows_in(mistral) == {0: 8, 1: 8}
    assert window_of_all(mistral) == 8
    neo = base_of(
        GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=40,
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global", "local"], 1]],
                window_size=4,
            )
        ),
        causal_base,
    )
    assert windows_in(neo) == {0: None, 1: 4}
    assert window_of_all(neo) is None


def test_a_window_as_long_as_any_text_is_none(causal_base: BaseModel) -> None:
    base = replace(causal_base, max_positions=64)
    assert same_windows(base, {0: None, 1: 8}, {0: 64, 1: 8})
    assert not same_windows(base, {0: None}, {0: 63})
    assert not same_windows(replace(base, max_positions=None), {0: None}, {0: 64})
