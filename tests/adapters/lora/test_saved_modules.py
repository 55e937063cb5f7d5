from __future__ import annotations

import copy

import torch
from torch import nn

from luthier.adapters.lora.saved_modules import SavedModule, layers_of
from tests.fixtures.lora_models import make_llama


def saved(network: nn.Module) -> SavedModule:
    return SavedModule(network, frozenset(name for name, _ in network.named_parameters()))


def test_a_block_is_its_layers_and_putting_each_in_place_is_putting_it_in() -> None:
    model = make_llama()
    block = copy.deepcopy(model.get_submodule("model.layers.1"))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.3)
    layers = layers_of({"model.layers.1": saved(block)})
    assert layers is not None
    assert {path.removeprefix("model.layers.1.") for path in layers} == {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    }
    whole, by_layer = make_llama(), make_llama()
    whole.set_submodule("model.layers.1", block)
    for path, layer in layers.items():
        by_layer.set_submodule(path, layer)
    ids = torch.arange(5)[None] + 3
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, by_layer(ids).logits)
        assert not torch.equal(whole(ids).logits, model(ids).logits)


def test_a_layer_is_itself() -> None:
    norm = nn.LayerNorm(4)
    assert layers_of({"ln_f": saved(norm)}) == {"ln_f": norm}


def test_a_module_with_tensors_beside_its_layers_is_not_taken_apart() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.gate = nn.Parameter(torch.ones(2))

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.register_buffer("seen", torch.zeros(1))

    assert layers_of({"odd": saved(Odd())}) is None
    assert layers_of({"norm": saved(nn.LayerNorm(2)), "odd": saved(Counting())}) is None
