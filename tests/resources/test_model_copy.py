from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_models import bart_config, make_tokenizer
from torch import nn
from transformers import (
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.resources.model_copy import build_base_model, describe_base_model, model_tensors
from luthier.resources.shared_tensors import SharedTensors, map_tensors

SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "scaled rotation": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=ROPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "transposed": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, **IDS)
    ),
    "two rotations": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8)),
    "ALiBi": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)
    ),
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2)),
    "relative positions": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=400,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "fixed positions": lambda: BartForConditionalGeneration(bart_config(bos_token_id=2)),
}


def copied(base_model: BaseModel, folder: Path) -> BaseModel:
    shared = SharedTensors(model_tensors(base_model.model))
    describe_base_model(base_model, folder)
    return build_base_model(folder, map_tensors(shared.file_descriptor, shared.places))


def logits(base_model: BaseModel) -> torch.Tensor:
    ids = torch.arange(5, 17)[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    if base_model.kind == "seq2seq":
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        result: torch.Tensor = base_model.model(**inputs).logits
    return result


@pytest.mark.parametrize("sort", MODELS)
def test_a_model_around_the_same_tensors_gives_the_same(sort: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MODELS[sort]()
    model.generation_config.no_repeat_ngram_size = 3
    base = BaseModel.from_memory(model, make_tokenizer(), name="some/model")
    copy = copied(base, tmp_path)
    assert torch.equal(logits(copy), logits(base))
    assert copy.model.config.to_dict() == model.config.to_dict()
    assert copy.model.config._attn_implementation == model.config._attn_implementation
    assert copy.model.generation_config.to_dict() == model.generation_config.to_dict()
    assert len(list(copy.model.parameters())) == len(list(model.parameters())), "ties stay ties"
    assert not any(parameter.requires_grad for parameter in copy.model.parameters())
    assert not copy.model.training
    for name in ("name", "kind", "eos_token_ids", "pad_token_id", "max_positions", "quantization"):
        assert getattr(copy, name) == getattr(base, name), name


@pytest.mark.parametrize("word", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("sort", ["tied", "transposed", "relative positions"])
def test_quantised_layers_are_the_same_layers(sort: str, word: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(1)
    whole = BaseModel.from_memory(MODELS[sort](), make_tokenizer(), name="some/model")
    base = whole.quantised(word)
    copy = copied(base, tmp_path)
    assert torch.equal(logits(copy), logits(base))
    assert not torch.equal(logits(copy), logits(whole))
    assert copy.quantization == word


def test_the_tokenizer_goes_along(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    copy = copied(tiny_causal_base, tmp_path)
    for text in ("hello world, 日本 🙂", " .Label : x"):
        ids = tiny_causal_base.tokenizer(text)["input_ids"]
        assert copy.tokenizer(text)["input_ids"] == ids
        assert copy.tokenizer.decode(ids) == tiny_causal_base.tokenizer.decode(ids)
    assert copy.tokenizer.all_special_ids == tiny_causal_base.tokenizer.all_special_ids
    assert copy.tokenizer.chat_template == tiny_causal_base.tokenizer.chat_template


def test_what_a_model_may_write_to_is_its_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = BaseModel.from_memory(MODELS["scaled rotation"](), make_tokenizer(), name="llama")
    for _, buffer in copied(base, tmp_path).model.named_buffers():
        buffer.add_(1)


def test_a_model_that_its_class_does_not_build_is_refused(tmp_path: Path) -> None:
    model = MODELS["tied"]()
    model.model.layers[0].mlp.act_fn = nn.Tanh()
    base = BaseModel.from_memory(model, make_tokenizer(), name="changed")
    with pytest.raises(NotSupportedError, match="'changed' was changed after it was built"):
        copied(base, tmp_path)


def test_a_class_that_has_no_place_is_refused(tmp_path: Path) -> None:
    class Hidden(LlamaForCausalLM):  # type: ignore[misc]
        pass

    base = BaseModel.from_memory(Hidden(LlamaConfig(**SMALL)), make_tokenizer(), name="hidden")
    with pytest.raises(NotSupportedError, match=r"'hidden' is of class .*Hidden.*cannot be found"):
        describe_base_model(base, tmp_path)
