"""Merged models against the adapter beside its base, and against PEFT's merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.lora_models import FAMILIES, disturb, make_inputs, make_llama, make_t5, with_peft
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.merge import merged_state, save_merged
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, NotSupportedError

KINDS: list[dict[str, Any]] = [
    {},
    {"use_dora": True, "use_rslora": True},
    {"initialisation": "pissa", "use_dora": True},
    {"modules_to_save": ("lm_head",)},
    {"unfreeze_layers": ("0",)},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_gives_the_adapters_logits(
    family: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    model = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = create_lora(model, LoraConfig.from_mapping({"rank": 4, **kind}), seed=3)
    disturb(adapter)
    save_merged(adapter, model, tmp_path)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = adapter.tuned_model(model)(**inputs).logits
        merged = auto.from_pretrained(tmp_path).eval()(**inputs).logits
        torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-5)
        assert (model(**inputs).logits - expected).abs().max() > 0.05
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_merged_weights_are_those_of_peft() -> None:
    for theirs in ({}, {"use_dora": True}):
        expected = with_peft(make_llama(), seed=3, r=4, lora_alpha=6, **theirs)
        model = make_llama()
        adapter = create_lora(model, LoraConfig(rank=4, alpha=6, **theirs), seed=3)
        disturb(adapter, expected)
        state = merged_state(adapter, model)
        for name, tensor in expected.merge_and_unload().state_dict().items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-5)


def test_what_the_adapter_leaves_alone_is_not_copied() -> None:
    model = make_llama()
    state = merged_state(create_lora(model, LoraConfig(rank=2), seed=1), model)
    assert state["lm_head.weight"].data_ptr() == model.lm_head.weight.data_ptr()
    assert state.keys() == model.state_dict().keys()


def test_a_head_that_left_its_embeddings_is_saved_beside_them(tmp_path: Path) -> None:
    model = make_llama(tie_word_embeddings=True)
    adapter = create_lora(model, LoraConfig(rank=2, modules_to_save=("lm_head",)), seed=1)
    disturb(adapter)
    save_merged(adapter, model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.tie_word_embeddings is False
    assert model.config.tie_word_embeddings is True
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = adapter.tuned_model(model)(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_a_head_of_t5_leaves_its_embeddings_and_the_scale_stays(
    tie_word_embeddings: bool, tmp_path: Path
) -> None:
    model = make_t5(tie_word_embeddings=tie_word_embeddings)
    adapter = create_lora(model, LoraConfig(rank=2, modules_to_save=("lm_head",)), seed=1)
    disturb(adapter)
    save_merged(adapter, model, tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = adapter.tuned_model(model)(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_embeddings_of_two_stacks_that_came_apart_cannot_be_saved(tmp_path: Path) -> None:
    model = make_t5()
    adapter = create_lora(
        model, LoraConfig(rank=2, modules_to_save=("encoder.embed_tokens",)), seed=1
    )
    disturb(adapter)
    with pytest.raises(NotSupportedError, match="are one tensor in the base model and differ"):
        save_merged(adapter, model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_never_merged_into() -> None:
    model = make_llama()
    adapter = create_lora(model, LoraConfig(rank=2), seed=1)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(torch.ones(128, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(NotSupportedError, match="quantised"):
        merged_state(adapter, model)


def test_sums_that_the_dtype_cannot_hold_are_refused() -> None:
    model = make_llama().to(torch.float16)
    adapter = create_lora(model, LoraConfig(rank=2), seed=1)
    with torch.no_grad():
        for factors in adapter.factors.values():
            factors.lora_b.fill_(1e5)
    with pytest.raises(InvalidInputError, match=r"layers.0.self_attn.q_proj' exceeds.*float16"):
        merged_state(adapter, model)
