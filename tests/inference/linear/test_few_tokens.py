from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.inference.kernels.library import kernels
from luthier.inference.linear.few_tokens import (
    MAX_TOKENS,
    FewTokensLinear,
    max_exact_tokens,
    quicken_few_tokens,
)

pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(512, 1041), nn.Linear(1041, 48, bias=False), nn.Linear(48, 3, bias=False)
    ).requires_grad_(False)


@pytest.mark.parametrize("num_inputs", [16, 48, 576, 784, 1536])
@pytest.mark.parametrize("num_outputs", [1, 4, 7, 8, 9, 64, 193])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_double_precision(
    num_inputs: int, num_outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(num_outputs)
    base = nn.Linear(num_inputs, num_outputs, bias=has_bias).requires_grad_(False)
    layer, exact = FewTokensLinear(base), copy.deepcopy(base).double()
    for num_tokens in [*range(1, 14), 20, MAX_TOKENS, MAX_TOKENS + 1]:
        x = torch.randn(num_tokens, num_inputs)
        torch.testing.assert_close(layer(x).double(), exact(x.double()), rtol=0, atol=2e-5)


def test_any_shape_and_order_of_inputs() -> None:
    base = nn.Linear(32, 5).requires_grad_(False)
    layer = FewTokensLinear(base)
    for x in (
        torch.randn(32),
        torch.randn(2, 3, 32),
        torch.randn(32, 6).t(),
        torch.randn(4, 64)[:, ::2],
        torch.randn(1, 32).expand(5, 32),
        torch.randn(0, 32),
        torch.randn(2, 0, 32),
    ):
        torch.testing.assert_close(layer(x), base(x))


@pytest.mark.parametrize("num_inputs", [96, 784])
def test_a_row_does_not_depend_on_those_beside_it(num_inputs: int) -> None:
    layer = FewTokensLinear(nn.Linear(num_inputs, 62).requires_grad_(False))
    x = torch.randn(23, num_inputs)
    together = layer(x)
    for first in range(23):
        for stop in range(first + 1, 24):
            assert torch.equal(layer(x[first:stop]), together[first:stop])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_several_threads_give_the_same_bits(num_threads: int) -> None:
    layer = FewTokensLinear(nn.Linear(576, 203).requires_grad_(False))
    x, before = torch.randn(7, 576), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer(x)
        torch.set_num_threads(num_threads)
        assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = FewTokensLinear(nn.Linear(32, 9).requires_grad_(False))
    x = torch.randn(3, 32)
    x[1, 4] = torch.nan
    output = layer(x)
    assert output[1].isnan().all()
    assert output[[0, 2]].isfinite().all()


def test_layers_are_replaced_where_the_kernel_fits_and_tensors_are_shared() -> None:
    network = make_network()
    tensors = dict(network.named_parameters())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    x = torch.randn(8, 512)
    expected = network(x)
    quicken_few_tokens(network)
    # The second has 1041 inputs, no multiple of a vector.
    assert [type(layer) for layer in network] == [FewTokensLinear, nn.Linear, FewTokensLinear]
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected)
    after = dict(network.named_parameters())
    assert after.keys() == tensors.keys()
    assert all(after[name] is tensors[name] for name in tensors)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(512, 1040, dtype=torch.float64),
        nn.Linear(512, 1040, dtype=torch.bfloat16),
        nn.Linear(40, 8),
        nn.Embedding(1040, 512),
    ],
)
def test_other_layers_stay(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    quicken_few_tokens(network)
    assert network[0] is layer


def test_networks_may_be_converted_and_trained_after_their_layers_were_replaced() -> None:
    network = make_network()
    quicken_few_tokens(network)
    x = torch.randn(3, 512)
    network.double()
    with pytest.raises(RuntimeError, match="dtype"):
        network(x)
    wide = network(x.double())
    network.float()
    torch.testing.assert_close(network(x).double(), wide, rtol=0, atol=1e-5)
    network.requires_grad_()
    network(x).sum().backward()
    assert all(each.grad is not None for each in network.parameters())
    assert network.to("meta")(x.to("meta")).shape == (3, 3)


@pytest.mark.parametrize("num_inputs", [8, 32])
def test_rows_of_another_size_are_refused(num_inputs: int) -> None:
    layer = FewTokensLinear(nn.Linear(16, 4).requires_grad_(False))
    with pytest.raises(RuntimeError, match="shapes"):
        layer(torch.randn(2, num_inputs))


def test_passes_are_exact_where_the_kernel_multiplies() -> None:
    cpu = torch.device("cpu")
    assert max_exact_tokens(cpu, torch.float32) == MAX_TOKENS
    assert max_exact_tokens(cpu, torch.bfloat16) is None
    assert max_exact_tokens(torch.device("meta"), torch.float32) is None
