"""Which layers take a faster way, and when they go their own all the same."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.resources.base_model import BaseModel
from luthier.training.data.packing import RowGroup, RowLayout
from luthier.training.networks.fast.fast_layers import drop_unlabelled, with_fast_layers
from luthier.training.networks.packed_attention import with_packed_attention

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}


def _model(model_type: str, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**SIZES, **sizes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval().double()
    with_packed_attention(model)
    return model.requires_grad_(False)


def _hidden(model: PreTrainedModel, **others: Any) -> torch.Tensor:
    embeddings = torch.randn(
        1, 12, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    positions = torch.tensor([[*range(5), *range(7)]])
    layouts = (RowLayout(0, (RowGroup(1, 5), RowGroup(1, 7))),)
    hidden: torch.Tensor = model.model(
        inputs_embeds=embeddings, position_ids=positions, row_layouts=layouts, **others
    ).last_hidden_state
    return hidden


def _require_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Models round to fp32 in their norms; ours do not."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "sizes", "ways"),
    [
        ("llama", {}, {"_run_layer", "_normalise", "_feed_forward", "_attend"}),
        (
            "mistral",
            {"sliding_window": None},
            {"_run_layer", "_normalise", "_feed_forward", "_attend"},
        ),
        ("qwen2", {}, {"_run_layer", "_normalise", "_feed_forward", "_attend"}),
        ("qwen3", {"head_dim": 8}, {"_run_layer", "_normalise", "_feed_forward", "_attend"}),
        ("granite", {}, {"_normalise", "_feed_forward", "_attend"}),
        ("olmo2", {}, {"_normalise", "_feed_forward"}),
        ("gemma3_text", {"head_dim": 8}, set()),
    ],
)
def test_layers_that_are_known_go_faster_and_give_the_same(
    model_type: str, sizes: dict[str, Any], ways: set[str]
) -> None:
    model = _model(model_type, **sizes)
    expected = _hidden(model)
    assert with_fast_layers(model) == bool(ways)
    changed = [vars(each)["forward"] for each in model.modules() if "forward" in vars(each)]
    assert {each.func.__name__ for each in changed} == ways
    _require_same(_hidden(model), expected)


def test_the_last_layer_goes_on_with_chosen_tokens_only() -> None:
    model = _model("llama")
    expected = _hidden(model)
    with_fast_layers(model)
    assert drop_unlabelled(model)
    places = torch.tensor([1, 4, 5, 11])
    _require_same(_hidden(model, label_places=places), expected[:, places])


def test_tokens_are_chosen_behind_a_layers_own_attention_too() -> None:
    model = _model("llama", attention_dropout=0.5)
    expected = _hidden(model)
    with_fast_layers(model)
    drop_unlabelled(model)
    for layer in model.model.layers:
        layer.self_attn.training = True
        layer.self_attn.attention_dropout = 1e-12
    places = torch.tensor([0, 11])
    _require_same(_hidden(model, label_places=places), expected[:, places])


def test_a_network_of_other_layers_keeps_all_tokens() -> None:
    assert not drop_unlabelled(_model("olmo2"))


def test_half_precision_goes_its_own_way() -> None:
    model = _model("llama").bfloat16()
    assert not with_fast_layers(model)
    full = _model("llama").float()
    plain = copy.deepcopy(full)
    with_fast_layers(full)
    layer, own = full.model.layers[0].mlp, plain.model.layers[0].mlp
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), own(x))


def test_the_base_models_own_layers_stay(tiny_causal_base: BaseModel) -> None:
    copied = copy.deepcopy(tiny_causal_base.model)
    with_fast_layers(copied)
    assert not any("forward" in vars(layer) for layer in tiny_causal_base.model.modules())
