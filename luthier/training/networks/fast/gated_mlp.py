"""The feed-forward part of Llama-like layers, ``down(silu(gate(x)) · up(x))``, with little kept.

Autograd keeps silu(gate) beside gate and up. Here it is computed again from gate, which costs less
than reading it back, and the passes over memory are made block by block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.training.networks.fast.cache_blocks import blocks

_silu_into = torch.ops.aten.silu.out
_silu_backward_into = torch.ops.aten.silu_backward.grad_input


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


def frozen_gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """``swiglu(x gateᵀ, x upᵀ) downᵀ`` with weights that are not learned.

    Args:
        x: fp32 or fp64, [.., D].
        gate: [I, D].
        up: [I, D].
        down: [D, I].

    Returns:
        [.., D], differentiable once in ``x``. 2 · I numbers a row are kept for that.
    """
    return _FrozenGatedMlp.apply(x, gate, up, down)  # type: ignore[no-any-return, no-untyped-call]


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


class _FrozenGatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gated, upped = rows @ gate.T, rows @ up.T
        output = _product(gated, upped) @ down.T
        ctx.save_for_backward(gated, upped, gate, up, down)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gated, upped, gate, up, down = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        grads = grad_output.reshape(-1, grad_output.shape[-1]) @ down
        # What was kept is nobody else's and not needed again: its memory takes the gradients.
        for part in blocks(*gated.shape):
            of_gate, of_up, grad = gated[part], upped[part], grads[part]
            of_up.mul_(grad)
            grad.mul_(functional.silu(of_gate))
            _silu_backward_into(of_up, of_gate, grad_input=of_gate)
        grad_x = (gated @ gate).addmm_(grads, up)
        return grad_x.view(*grad_output.shape[:-1], -1), None, None, None


def _product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, both [N, I]."""
    output = torch.empty_like(gate)
    for part in blocks(*gate.shape):
        _silu_into(gate[part], out=output[part]).mul_(up[part])
    return output
