"""RMSNorm against Llama's layer and autograd."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.training.networks.fast.rms_norm import rms_norm


@pytest.mark.parametrize("shape", [(5, 8), (1, 300, 512), (2, 3, 4, 6)])
@pytest.mark.parametrize("learns_weight", [False, True])
def test_values_and_gradients_are_those_of_llamas_norm(
    shape: tuple[int, ...], learns_weight: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    layer = LlamaRMSNorm(shape[-1], eps=1e-3)
    layer.weight.data = torch.randn(shape[-1], generator=generator)
    layer.weight.requires_grad_(learns_weight)
    direction = torch.randn(shape, generator=generator)
    wanted = [x, layer.weight] if learns_weight else [x]
    expected, found = layer(x), rms_norm(x, layer.weight, 1e-3)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_rows_that_are_zero_have_gradients() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    weight = torch.ones(4)
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, 1e-2).sum(), [x])
    torch.testing.assert_close(gradient, torch.full((2, 4), 10.0))
