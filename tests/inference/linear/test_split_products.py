from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.inference.linear.split_products import SplitLinear, split_products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="layers are split for MKL alone"
)


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(512, 1040), nn.Linear(1040, 520, bias=False), nn.Linear(520, 16384, bias=False)
    ).requires_grad_(False)


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 9, 15, 16, 40, 63, 64])
def test_split_layers_give_what_whole_ones_give(num_tokens: int) -> None:
    whole, split = make_network(), make_network()
    split_products(split)
    assert [type(layer) for layer in split] == [SplitLinear, SplitLinear, SplitLinear]
    x = torch.randn(1, num_tokens, 512)
    with torch.inference_mode():
        torch.testing.assert_close(split(x), whole(x), rtol=1e-4, atol=1e-5)


def test_tensors_are_shared_and_unchanged() -> None:
    network = make_network()
    tensors = dict(network.named_parameters())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    split_products(network)
    after = dict(network.named_parameters())
    assert after.keys() == tensors.keys()
    assert all(after[name] is tensors[name] for name in tensors)
    with torch.inference_mode():
        network(torch.randn(8, 512))
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(64, 64),  # small
        nn.Linear(512, 1039),  # a prime number of outputs
        nn.Linear(512, 1040, dtype=torch.float64),
        nn.Embedding(1040, 512),
    ],
)
def test_other_layers_stay(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    split_products(network)
    assert network[0] is layer
