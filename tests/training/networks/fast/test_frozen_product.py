"""Frozen products with deltas against plain operations and autograd."""

import pytest
import torch
from fixtures.frozen_products import factors_of, make_products, plain_product
from torch import nn

from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora_factors import LoraFactors
from luthier.training.networks.fast.frozen_product import (
    flat,
    frozen_product_of,
    grads_of_factors,
    unflat,
)

DTYPE = torch.float64


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("with_delta", [("only",), ()])
def test_value_and_gradients_are_those_of_autograd(adds: bool, with_delta: tuple[str, ...]) -> None:
    product = make_products({"only": (6, 8)}, with_delta=with_delta)["only"]
    rows, direction = _random(5, 8, seed=1).requires_grad_(), _random(5, 6, seed=3)
    onto, before = _random(5, 6, seed=6), _random(5, 8, seed=7)
    expected = plain_product(product, rows) + (onto if adds else 0)
    of_rows, *of_factors = torch.autograd.grad(expected, [rows, *factors_of([product])], direction)
    with torch.no_grad():
        found, low = product.run(rows, onto=onto if adds else None)
        torch.testing.assert_close(found, expected)
        grad_low = product.grad_of_low(direction)
        grad_rows = product.grad_of_rows(direction, grad_low, onto=before.clone() if adds else None)
        torch.testing.assert_close(grad_rows, of_rows + before if adds else of_rows)
        _, *found_of_factors = grads_of_factors(direction, grad_low, rows, low)
    assert (found_of_factors == [None, None]) == (not with_delta)
    for ours, theirs in zip(found_of_factors, of_factors, strict=False):
        torch.testing.assert_close(ours, theirs)


def test_products_come_back_from_a_flat_row() -> None:
    products = list(make_products({"a": (2, 2), "b": (2, 3)}, with_delta=["b"]).values())
    tensors = flat(products)
    assert len(tensors) == 6
    found = unflat(tensors, [product.scaling for product in products])
    for one, other in zip(found, products, strict=True):
        assert all(ours is theirs for ours, theirs in zip(one, other, strict=True))


def _lora(layer: nn.Linear, *, dropout: float = 0.0) -> LoraLinear:
    factors = LoraFactors(
        nn.Parameter(_random(2, 8, seed=1)), nn.Parameter(_random(6, 2, seed=2)), 0.5
    )
    return LoraLinear(layer, factors, dropout=dropout)


def _linear(*, bias: bool = False, frozen: bool = True) -> nn.Linear:
    return nn.Linear(8, 6, bias=bias, dtype=DTYPE).requires_grad_(not frozen)


def test_frozen_layers_and_their_plain_deltas_are_known() -> None:
    x = _random(3, 8, seed=3)
    layer = _linear()
    plain, with_delta = frozen_product_of(layer, x), frozen_product_of(_lora(layer), x)
    assert plain is not None
    assert with_delta is not None
    torch.testing.assert_close(plain.run(x)[0], layer(x))
    torch.testing.assert_close(with_delta.run(x)[0], _lora(layer)(x))


@pytest.mark.parametrize(
    "layer",
    [
        _linear(bias=True),
        _linear(frozen=False),
        _lora(_linear(bias=True)),
        _lora(_linear(), dropout=0.1),
        nn.Linear(8, 6, bias=False).requires_grad_(False),
        nn.Identity(),
    ],
)
def test_other_layers_are_asked_themselves(layer: nn.Module) -> None:
    assert frozen_product_of(layer, _random(3, 8, seed=3)) is None
