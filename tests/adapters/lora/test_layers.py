"""One layer against the formula written out."""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from luthier.adapters.lora.layers import LoraLinear, oriented_weight, squares_added
from luthier.adapters.lora_factors import LoraFactors
from luthier.errors import NotSupportedError


def _factors(*, has_magnitude: bool = False, has_start: bool = False) -> LoraFactors:
    torch.manual_seed(3)
    return LoraFactors(
        lora_a=nn.Parameter(torch.randn(2, 5, dtype=torch.float64)),
        lora_b=nn.Parameter(torch.randn(4, 2, dtype=torch.float64)),
        scaling=1.5,
        magnitude=nn.Parameter(torch.rand(4, dtype=torch.float64) + 1) if has_magnitude else None,
        start_a=torch.randn(2, 5, dtype=torch.float64) if has_start else None,
        start_b=torch.randn(4, 2, dtype=torch.float64) if has_start else None,
    )


def _base(kind: str) -> nn.Module:
    torch.manual_seed(4)
    layer = Conv1D(4, 5) if kind == "Conv1D" else nn.Linear(5, 4, bias=kind == "bias")
    return layer.double().requires_grad_(False)


def _written_out(base: nn.Module, factors: LoraFactors, x: torch.Tensor) -> torch.Tensor:
    weight = oriented_weight(base) + factors.scaling * factors.lora_b @ factors.lora_a
    if factors.start_a is not None and factors.start_b is not None:
        weight = weight - factors.scaling * factors.start_b @ factors.start_a
    if factors.magnitude is not None:
        lengths = torch.linalg.norm(weight, dim=1).detach()
        weight = weight * (factors.magnitude / lengths)[:, None]
    return functional.linear(x, weight, base.bias)


@pytest.mark.parametrize("base_kind", ["bias", "no bias", "Conv1D"])
@pytest.mark.parametrize("has_magnitude", [False, True])
@pytest.mark.parametrize("has_start", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_output_and_gradients_are_those_of_the_formula(
    base_kind: str, has_magnitude: bool, has_start: bool, shape: tuple[int, ...]
) -> None:
    base = _base(base_kind)
    factors = _factors(has_magnitude=has_magnitude, has_start=has_start)
    layer = LoraLinear(base, factors)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    learned = [x, factors.lora_a, factors.lora_b]
    learned += [factors.magnitude] if factors.magnitude is not None else []
    upstream = torch.randn(*shape[:-1], 4, dtype=torch.float64)

    expected = _written_out(base, factors, x)
    result = layer(x)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, learned, upstream),
        torch.autograd.grad(expected, learned, upstream),
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_a_model_may_change_the_output_in_place() -> None:
    """As LED's layers do, which divide it by a root."""
    base, factors = _base("bias"), _factors()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    for transposed in (x, x.transpose(0, 1)):
        output = LoraLinear(base, factors)(transposed)
        output /= 3.0
        got = torch.autograd.grad(output.square().sum(), [x, factors.lora_a, factors.lora_b])
        expected = torch.autograd.grad(
            (_written_out(base, factors, transposed) / 3.0).square().sum(),
            [x, factors.lora_a, factors.lora_b],
        )
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_input_may_need_no_gradient() -> None:
    factors = _factors()
    layer = LoraLinear(_base("bias"), factors)
    layer(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert factors.lora_a.grad is not None and factors.lora_b.grad is not None


def test_a_base_layer_that_learns_too_gets_its_gradient() -> None:
    base = _base("bias").requires_grad_(True)
    LoraLinear(base, _factors())(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in base.parameters())


@pytest.mark.parametrize("has_magnitude", [False, True])
def test_dropout_acts_only_where_a_gradient_is_recorded(has_magnitude: bool) -> None:
    base, factors = _base("bias"), _factors(has_magnitude=has_magnitude)
    layer = LoraLinear(base, factors, dropout=0.5)
    x = torch.randn(64, 5, dtype=torch.float64)
    expected = _written_out(base, factors, x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), first)
    assert not torch.allclose(first, expected, atol=1e-3)
    mean = torch.stack([layer(x).detach() for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, expected.detach(), atol=0.35, rtol=0)


def test_a_kept_norm_follows_every_change_of_the_factors() -> None:
    base, factors = _base("bias"), _factors(has_magnitude=True)
    layer = LoraLinear(base, factors)
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (factors.lora_a, factors.lora_b, factors.magnitude):
            layer(x)
            assert tensor is not None
            tensor.mul_(1.5)
            torch.testing.assert_close(layer(x), _written_out(base, factors, x))
        factors.lora_a.data.mul_(2)  # nobody counts this change …
    layer(x).sum().backward()
    with torch.no_grad():  # … but a step of training forgets what was kept
        torch.testing.assert_close(layer(x), _written_out(base, factors, x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), _written_out(base, factors, x))


def test_growth_of_squares_is_that_of_the_product() -> None:
    torch.manual_seed(1)
    weight, a, b = torch.randn(4, 5), torch.randn(2, 5), torch.randn(4, 2)
    grown = (weight + 0.7 * b @ a).square().sum(1) - weight.square().sum(1)
    torch.testing.assert_close(squares_added(weight, a, b, 0.7), grown)


def test_a_copy_around_the_same_tensors_computes_the_same() -> None:
    layer = LoraLinear(_base("bias"), _factors(has_magnitude=True, has_start=True))
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        tensors = chain(layer.parameters(), layer.buffers())
        twin = copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors})
        assert twin.lora_a is layer.lora_a and twin.start_a is layer.start_a
        torch.testing.assert_close(twin(x), expected)


def test_quantised_weights_have_no_numbers_to_read() -> None:
    layer = nn.Linear(5, 4)
    layer.weight = nn.Parameter(torch.ones(10, 1, dtype=torch.uint8), requires_grad=False)

    class Params4bit(nn.Parameter):
        """As bitsandbytes keeps them: packed, under a float dtype."""

    with pytest.raises(NotSupportedError, match="quantised"):
        oriented_weight(layer)
    layer.weight = Params4bit(torch.ones(4, 5))
    with pytest.raises(NotSupportedError, match="quantised"):
        oriented_weight(layer)
