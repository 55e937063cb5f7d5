"""The attention part of Llama-like layers, ``x + o(attention(q(n), k(n), v(n)))`` with n the normed
``x``, as one function.

Autograd keeps n, sums up what comes back to it in tensors of their own and adds the way around the
part in another. Here n is computed again where a delta needs it, and all is added up in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from luthier.training.data.packing import RowLayout
from luthier.training.networks.fast.frozen_product import (
    FrozenProduct,
    flat,
    grads_of_factors,
    unflat,
)
from luthier.training.networks.fast.rms_norm import inverse_rms, scaled, scaled_backward
from luthier.training.networks.fast.rotary_attention import (
    turn_and_attend,
    turn_and_attend_backward,
)
from luthier.training.networks.fast.row_attention import Span, spans_of


class AttentionProducts(NamedTuple):
    """The four products of an attention part; H · Dh and K · Dh are the sizes of all heads.

    Args:
        query: [H · Dh, D].
        key: [K · Dh, D].
        value: [K · Dh, D].
        output: [D, H · Dh].
    """

    query: FrozenProduct
    key: FrozenProduct
    value: FrozenProduct
    output: FrozenProduct


class _Settings(NamedTuple):
    """What is no tensor."""

    epsilon: float
    head_size: int
    spans: Sequence[Span]
    scaling: float
    delta_scalings: tuple[float, ...]


def normed_attention(
    x: torch.Tensor,
    products: AttentionProducts,
    norm_weight: torch.Tensor,
    epsilon: float,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_size: int,
    row_layouts: Sequence[RowLayout],
    scaling: float,
) -> torch.Tensor:
    """``x + o(rotary_attention(q(n), k(n), v(n)))`` with ``n = rms_norm(x)``.

    Args:
        x: fp32 or fp64, [1, N, D].
        products: Of the same dtype.
        norm_weight: Of the norm, frozen, [D].
        epsilon: Of the norm.
        cos: Of the angles, [N, Dh].
        sin: [N, Dh].
        head_size: Dh.
        row_layouts: Of the N tokens.
        scaling: Of the scores.

    Returns:
        [1, N, D], differentiable once in ``x`` and the factors of deltas. Kept are ``x``, the
        turned queries and keys, the values, and what o reads if it has a delta.
    """
    settings = _Settings(
        *(epsilon, head_size, tuple(spans_of(row_layouts)), scaling),
        tuple(product.scaling for product in products),
    )
    output: torch.Tensor = _NormedAttention.apply(  # type: ignore[no-untyped-call]
        x[0], norm_weight, cos, sin, settings, *flat(products)
    )
    return output[None]


class _NormedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm_weight: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        settings: _Settings,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        *inputs, output = unflat(tensors, settings.delta_scalings)
        scale = inverse_rms(x, settings.epsilon)
        normed = scaled(x, norm_weight, scale)
        heads = (len(x), -1, settings.head_size)
        parts, lows = zip(*(product.run(normed) for product in inputs), strict=True)
        query, key, value = (part.view(heads) for part in parts)
        attended, *turned = turn_and_attend(
            *(query, key, value, cos, sin), settings.spans, settings.scaling
        )
        result, low_of_output = output.run(attended, onto=x)
        ctx.save_for_backward(
            *(x, norm_weight, scale, None if low_of_output is None else attended),
            *(*turned, value, cos, sin),
            *(*lows, low_of_output, *tensors),
        )
        ctx.settings = settings
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settings: _Settings = ctx.settings
        x, norm_weight, scale, attended, query, key, value, cos, sin, *others = ctx.saved_tensors
        lows, tensors = others[:4], others[4:]
        *inputs, output = unflat(tensors, settings.delta_scalings)
        grad_low = output.grad_of_low(grad)
        grads = [
            each.reshape(len(x), -1)
            for each in turn_and_attend_backward(
                *(output.grad_of_rows(grad, grad_low), query, key, value, cos, sin),
                *(settings.spans, settings.scaling),
            )
        ]
        low_grads = [part.grad_of_low(each) for part, each in zip(inputs, grads, strict=True)]
        has_deltas = any(each is not None for each in low_grads)
        normed = scaled(x, norm_weight, scale) if has_deltas else None
        of_inputs = zip(grads, low_grads, lows[:3], strict=True)
        of_factors = [
            *(grads_of_factors(each, of_low, normed, low) for each, of_low, low in of_inputs),
            grads_of_factors(grad, grad_low, attended, lows[3]),
        ]
        grad_x = None
        if ctx.needs_input_grad[0]:
            for part, each, of_low in zip(inputs, grads, low_grads, strict=True):
                grad_x = part.grad_of_rows(each, of_low, onto=grad_x)
            assert grad_x is not None
            scaled_backward(grad_x, x, norm_weight, scale, out=grad_x, onto=grad)
        return grad_x, None, None, None, None, *(one for three in of_factors for one in three)
