"""RMSNorm with a backward pass of its own: few passes over memory, and little kept for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from luthier.training.networks.fast.cache_blocks import blocks


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


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + ε) and h = weight · dy: dx = r · h - x · r³ · mean(h · x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        scale = scale.square_().div_(rows.shape[1]).add_(epsilon).rsqrt_()
        output = torch.empty_like(rows)
        for part in blocks(*rows.shape):
            torch.mul(rows[part], scale[part], out=output[part]).mul_(weight)
        ctx.save_for_backward(rows, weight, scale)
        return output.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, scale = ctx.saved_tensors
        grads = grad_output.reshape(rows.shape)
        wants_x, wants_weight, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(rows) if wants_x else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for part in blocks(*rows.shape):
            x, grad, scale_of_part = rows[part], grads[part], scale[part]
            if grad_weight is not None:
                grad_weight += (x * scale_of_part).mul_(grad).sum(dim=0)
            if grad_x is not None:
                inner = torch.mul(grad, weight, out=grad_x[part])
                along = torch.linalg.vecdot(inner, x)[:, None].mul_(scale_of_part.pow(3))
                inner.mul_(scale_of_part).addcmul_(x, along, value=-1.0 / rows.shape[1])
        return None if grad_x is None else grad_x.view(grad_output.shape), grad_weight, None
