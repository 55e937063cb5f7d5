"""The feed-forward part of Llama-like layers, ``down(silu(gate(x)) · up(x))``, with little kept.

Autograd keeps silu(gate) beside gate and up, and their product. Here both are computed again from
gate and up, which costs less than reading them back, and the passes over memory are made block by
block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.training.cache_blocks import blocks
from luthier.training.networks.fast.frozen_product import (
    FrozenProduct,
    flat,
    grads_of_factors,
    unflat,
)
from luthier.training.networks.fast.rms_norm import inverse_rms, scaled, scaled_backward

_silu_into = torch.ops.aten.silu.out
_silu_backward_into = torch.ops.aten.silu_backward.grad_input


class GatedMlp(NamedTuple):
    """The three products of a feed-forward part.

    Args:
        gate: [I, D].
        up: [I, D].
        down: [D, I].
    """

    gate: FrozenProduct
    up: FrozenProduct
    down: FrozenProduct


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) · up``, differentiable once.

    Args:
        gate: fp32 or fp64, [.., I].
        up: Like ``gate``.

    Returns:
        [.., I].

    Source:
        Shazeer 2020, https://arxiv.org/abs/2002.05202
    """
    return _SwiGlu.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


def gated_mlp(x: torch.Tensor, products: GatedMlp) -> torch.Tensor:
    """``down(swiglu(gate(x), up(x)))``.

    Args:
        x: fp32 or fp64, [.., D].
        products: Of the same dtype.

    Returns:
        [.., D], differentiable once in ``x`` and the factors of deltas. 2 · I numbers a row are
        kept for that, and ``x`` where gate or up has a delta.
    """
    return _run(x, products, None, 0.0)


def normed_gated_mlp(
    x: torch.Tensor, products: GatedMlp, norm_weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """``x + gated_mlp(rms_norm(x))``.

    Args:
        x: fp32 or fp64, [.., D].
        products: Of the same dtype.
        norm_weight: Of the norm, frozen, [D].
        epsilon: Of the norm.

    Returns:
        As ``gated_mlp``; ``x`` is kept.
    """
    return _run(x, products, norm_weight, epsilon)


def _run(
    x: torch.Tensor, products: GatedMlp, norm_weight: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    scalings = tuple(product.scaling for product in products)
    return _GatedMlp.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, norm_weight, epsilon, scalings, *flat(products)
    )


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _product(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1])).view(
            gate.shape
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape, width = grad_output.shape, grad_output.shape[-1]
        gate, up = (saved.reshape(-1, width) for saved in ctx.saved_tensors)
        grads = grad_output.reshape(-1, width)
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        for part in blocks(*gate.shape):
            _silu_into(gate[part], out=grad_up[part]).mul_(grads[part])
            torch.mul(grads[part], up[part], out=grad_gate[part])
            _silu_backward_into(grad_gate[part], gate[part], grad_input=grad_gate[part])
        return grad_gate.view(shape), grad_up.view(shape)


class _GatedMlp(torch.autograd.Function):
    """With a norm before and the sum with ``x`` behind, or, without the norm's weight, neither."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm_weight: torch.Tensor | None,
        epsilon: float,
        scalings: tuple[float, ...],
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        gate, up, down = unflat(tensors, scalings)
        rows = x.reshape(-1, x.shape[-1])
        scale = None if norm_weight is None else inverse_rms(rows, epsilon)
        normed = _normed(rows, norm_weight, scale)
        gated, low_of_gate = gate.run(normed)
        upped, low_of_up = up.run(normed)
        output, low_of_down = down.run(
            _product(gated, upped), onto=None if norm_weight is None else rows
        )
        reads_rows = not (norm_weight is None and gate.lora_a is None and up.lora_a is None)
        ctx.save_for_backward(
            *(rows if reads_rows else None, norm_weight, scale, gated, upped),
            *(low_of_gate, low_of_up, low_of_down, *tensors),
        )
        ctx.scalings = scalings
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, norm_weight, scale, gated, upped, *others = ctx.saved_tensors
        lows, (gate, up, down) = others[:3], unflat(others[3:], ctx.scalings)
        grads = grad_output.reshape(-1, grad_output.shape[-1])
        grad_low = down.grad_of_low(grads)
        inner = down.grad_of_rows(grads, grad_low)
        _swiglu_backward(gated, upped, inner, keeps_product=grad_low is not None)
        # ``gated`` is now its own gradient, ``inner`` that of ``upped``, which is the product.
        of_down = grads_of_factors(grads, grad_low, upped, lows[2])
        low_of_gate, low_of_up = gate.grad_of_low(gated), up.grad_of_low(inner)
        has_deltas = low_of_gate is not None or low_of_up is not None
        normed = _normed(rows, norm_weight, scale) if has_deltas else None
        of_gate = grads_of_factors(gated, low_of_gate, normed, lows[0])
        of_up = grads_of_factors(inner, low_of_up, normed, lows[1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            of_normed = gate.grad_of_rows(gated, low_of_gate)
            grad_x = up.grad_of_rows(inner, low_of_up, onto=of_normed)
            if norm_weight is not None:
                scaled_backward(grad_x, rows, norm_weight, scale, out=grad_x, onto=grads)
            grad_x = grad_x.view(grad_output.shape)
        return grad_x, None, None, None, *of_gate, *of_up, *of_down


def _normed(
    rows: torch.Tensor, norm_weight: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    return rows if norm_weight is None or scale is None else scaled(rows, norm_weight, scale)


def _swiglu_backward(
    gate: torch.Tensor, up: torch.Tensor, grads: torch.Tensor, *, keeps_product: bool
) -> None:
    """Put gate's gradient in ``gate``, up's in ``grads`` and, if asked, the product in ``up``.

    What was kept is nobody else's and not needed again: its memory takes the gradients.
    """
    for part in blocks(*gate.shape):
        of_gate, of_up, grad = gate[part], up[part], grads[part]
        activated = functional.silu(of_gate)
        product = activated * of_up if keeps_product else None
        of_up.mul_(grad)
        grad.mul_(activated)
        _silu_backward_into(of_up, of_gate, grad_input=of_gate)
        if product is not None:
            of_up.copy_(product)


def _product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, both [N, I]."""
    output = torch.empty_like(gate)
    for part in blocks(*gate.shape):
        _silu_into(gate[part], out=output[part]).mul_(up[part])
    return output
