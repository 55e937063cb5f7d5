"""RMSNorm with a backward pass of its own: few passes over memory, and little kept for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from luthier.training.cache_blocks import blocks


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``weight · x / sqrt(mean(x²) + epsilon)``, differentiable once in ``x`` and ``weight``.

    Args:
        x: fp32 or fp64, [.., D].
        weight: [D], same dtype.
        epsilon: Added to the mean square.

    Returns:
        [.., D]. Kept for the backward pass: ``x`` and one number per row, half of what autograd
        keeps.

    Source:
        Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467
    """
    return _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


def inverse_rms(rows: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``1 / sqrt(mean(x²) + epsilon)`` of each row.

    Args:
        rows: [N, D].
        epsilon: Added to the mean square.

    Returns:
        [N, 1].
    """
    norm: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norm.square_().div_(rows.shape[1]).add_(epsilon).rsqrt_()


def scaled(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``weight · scale · rows``.

    Args:
        rows: [N, D].
        weight: [D].
        scale: From ``inverse_rms``.

    Returns:
        [N, D].
    """
    output = torch.empty_like(rows)
    for part in blocks(*rows.shape):
        torch.mul(rows[part], scale[part], out=output[part]).mul_(weight)
    return output


def scaled_backward(
    grads: torch.Tensor,
    rows: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    *,
    out: torch.Tensor,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient of RMSNorm's rows: with r the scale and h = weight · dy,
    dx = r · h - x · r³ · mean(h · x).

    Args:
        grads: dy, [N, D].
        rows: As they were, [N, D].
        weight: [D].
        scale: From ``inverse_rms``.
        out: Gets the result, [N, D]; may be ``grads``.
        onto: Added to it, [N, D], or None.

    Returns:
        ``out``.
    """
    for part in blocks(*rows.shape):
        x, scale_of_part = rows[part], scale[part]
        inner = torch.mul(grads[part], weight, out=out[part])
        along = torch.linalg.vecdot(inner, x)[:, None].mul_(scale_of_part.pow(3))
        inner.mul_(scale_of_part).addcmul_(x, along, value=-1.0 / rows.shape[1])
        if onto is not None:
            inner += onto[part]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = inverse_rms(rows, epsilon)
        ctx.save_for_backward(rows, weight, scale)
        return scaled(rows, weight, scale).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, scale = ctx.saved_tensors
        grads = grad_output.reshape(rows.shape)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            for part in blocks(*rows.shape):
                grad_weight += (rows[part] * scale[part]).mul_(grads[part]).sum(dim=0)
        if ctx.needs_input_grad[0]:
            grad_x = scaled_backward(grads, rows, weight, scale, out=torch.empty_like(rows))
            grad_x = grad_x.view(grad_output.shape)
        return grad_x, grad_weight, None
