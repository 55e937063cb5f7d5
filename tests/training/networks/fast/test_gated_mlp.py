"""The feed-forward part against plain operations and autograd."""

import pytest
import torch
from torch.nn import functional

from luthier.training.networks.fast.gated_mlp import frozen_gated_mlp, swiglu

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


@pytest.mark.parametrize("num_rows", [1, 70])
def test_a_frozen_part_gives_value_and_gradient_of_its_three_products(num_rows: int) -> None:
    x = _random(1, num_rows, 8, seed=1).requires_grad_()
    gate, up, down = _random(2048, 8, seed=2), _random(2048, 8, seed=3), _random(8, 2048, seed=4)
    direction = _random(1, num_rows, 8, seed=5)
    expected = (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    found = frozen_gated_mlp(x, gate, up, down)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, [x], direction), torch.autograd.grad(expected, [x], direction)
    )


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    x = _random(3, 8, seed=1).requires_grad_()
    weights = (_random(16, 8, seed=2), _random(16, 8, seed=3), _random(8, 16, seed=4))
    loss = frozen_gated_mlp(x, *weights).sum()
    torch.autograd.grad(loss, [x], retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [x])
