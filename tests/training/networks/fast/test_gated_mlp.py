"""The feed-forward part against plain operations and autograd."""

import pytest
import torch
from fixtures.frozen_products import factors_of, make_products, plain_product
from torch.nn import functional

from luthier.training.networks.fast.gated_mlp import GatedMlp, gated_mlp, normed_gated_mlp, swiglu
from luthier.training.networks.fast.rms_norm import rms_norm

DTYPE = torch.float64


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


@pytest.mark.parametrize("num_rows", [1, 70])
def test_swiglu_is_silu_times_up(num_rows: int) -> None:
    gate, up = (_random(1, num_rows, 2048, seed=seed).requires_grad_() for seed in (1, 2))
    direction = _random(1, num_rows, 2048, seed=3)
    expected, found = functional.silu(gate) * up, swiglu(gate, up)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, [gate, up], direction),
        torch.autograd.grad(expected, [gate, up], direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def _products(with_delta: tuple[str, ...]) -> GatedMlp:
    sizes = {"gate": (2048, 8), "up": (2048, 8), "down": (8, 2048)}
    return GatedMlp(**make_products(sizes, with_delta=with_delta))


def _by_pieces(x: torch.Tensor, products: GatedMlp) -> torch.Tensor:
    gate, up, down = products
    return plain_product(down, functional.silu(plain_product(gate, x)) * plain_product(up, x))


@pytest.mark.parametrize("num_rows", [1, 70])
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(
    "with_delta", [(), ("down",), ("gate", "down"), ("up",), ("gate", "up", "down")]
)
def test_a_part_gives_value_and_gradients_of_its_pieces(
    num_rows: int, has_norm: bool, with_delta: tuple[str, ...]
) -> None:
    x = _random(1, num_rows, 8, seed=1).requires_grad_()
    products, norm_weight = _products(with_delta), _random(8, seed=4)
    direction = _random(1, num_rows, 8, seed=5)
    if has_norm:
        expected = x + _by_pieces(rms_norm(x, norm_weight, 1e-3), products)
        found = normed_gated_mlp(x, products, norm_weight, 1e-3)
    else:
        expected, found = _by_pieces(x, products), gated_mlp(x, products)
    torch.testing.assert_close(found, expected)
    learned = [x, *factors_of(products)]
    for ours, theirs in zip(
        torch.autograd.grad(found, learned, direction),
        torch.autograd.grad(expected, learned, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_deltas_are_learned_behind_an_input_that_is_not() -> None:
    x, products = _random(3, 8, seed=1), _products(("gate", "down"))
    learned = factors_of(products)
    for ours, theirs in zip(
        torch.autograd.grad(gated_mlp(x, products).sum(), learned),
        torch.autograd.grad(_by_pieces(x, products).sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    x = _random(3, 8, seed=1).requires_grad_()
    loss = gated_mlp(x, _products(())).sum()
    torch.autograd.grad(loss, [x], retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [x])
