"""Rotary positions and attention of packed rows in one step, with a backward pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from luthier.training.data.packing import RowLayout
from luthier.training.networks.fast.row_attention import (
    Span,
    attend,
    attend_backward,
    spans_of,
)


def rotary_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    row_layouts: Sequence[RowLayout],
    scaling: float,
) -> torch.Tensor:
    """Attention as Llama's: queries and keys turned by their positions, each row causal.

    Args:
        query: fp32 or fp64, [N, H, Dh].
        key: [N, K, Dh]; H is a multiple of K.
        value: [N, K, Dh].
        cos: Of the angles, [N, Dh]; number i and number i + Dh / 2 of a head turn together.
        sin: [N, Dh].
        row_layouts: Of the N tokens: one batch after another, which do not see each other.
        scaling: Of the scores.

    Returns:
        [N, H · Dh], differentiable once. The turned queries and keys, and the values, are kept.

    Source:
        Su et al. 2021, https://arxiv.org/abs/2104.09864
    """
    return _RotaryAttention.apply(  # type: ignore[no-any-return, no-untyped-call]
        query, key, value, cos, sin, tuple(spans_of(row_layouts)), scaling
    )


def turn_and_attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``rotary_attention`` without autograd.

    Args:
        query: [N, H, Dh].
        key: [N, K, Dh].
        value: [N, K, Dh].
        cos: [N, Dh].
        sin: [N, Dh].
        spans: Cover the N tokens.
        scaling: Of the scores.

    Returns:
        The output, [N, H · Dh]; and the turned queries and keys, for the way back.
    """
    turned_query, turned_key = _empty_by_head(query, key.shape[1]), _empty_by_head(key)
    _turn(query, cos, sin, out=_by_token(turned_query, len(query)))
    _turn(key, cos, sin, out=_by_token(turned_key, len(key)))
    output = attend(turned_query, turned_key, value.transpose(0, 1), spans, scaling)
    return _by_token(output, len(query)).flatten(1), turned_query, turned_key


def turn_and_attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``turn_and_attend``.

    Args:
        grad: Of its output, [N, H · Dh].
        query: Turned, as it was given back.
        key: Turned, too.
        value: [N, K, Dh].
        cos: [N, Dh].
        sin: [N, Dh].
        spans: Cover the N tokens.
        scaling: Of the scores.

    Returns:
        Of query, key and value, in their shapes.
    """
    by_token = _by_token(query, len(value))
    grads = torch.empty_like(query)
    _by_token(grads, len(value)).copy_(grad.view(by_token.shape))
    turned = attend_backward(grads, query, key, value.transpose(0, 1), spans, scaling)
    grad_query = grad.new_empty(len(value), by_token[0].shape[:2].numel(), value.shape[2])
    grad_key = grad.new_empty(value.shape)
    _turn_back(_by_token(turned[0], len(value)), cos, sin, out=grad_query)
    _turn_back(_by_token(turned[1], len(value)), cos, sin, out=grad_key)
    return grad_query, grad_key, turned[2].transpose(0, 1)


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        spans: Sequence[Span],
        scaling: float,
    ) -> torch.Tensor:
        output, *turned = turn_and_attend(query, key, value, cos, sin, spans, scaling)
        ctx.save_for_backward(*turned, value, cos, sin)
        ctx.spans, ctx.scaling = spans, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, cos, sin = ctx.saved_tensors
        grads = turn_and_attend_backward(
            *(grad_output, query, key, value, cos, sin), ctx.spans, ctx.scaling
        )
        return *grads, None, None, None, None


def _empty_by_head(like: torch.Tensor, num_key_heads: int | None = None) -> torch.Tensor:
    """For [N, H, Dh]: [K, N · R, Dh], what ``row_attention`` reads."""
    num_tokens, num_heads, head_size = like.shape
    num_key_heads = num_key_heads or num_heads
    return like.new_empty(num_key_heads, num_tokens * num_heads // num_key_heads, head_size)


def _by_token(by_head: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[K, N · R, Dh] as [N, K, R, Dh]; a view."""
    num_heads, _, head_size = by_head.shape
    return by_head.view(num_heads, num_tokens, -1, head_size).transpose(0, 1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor) -> None:
    """Turn [N, H, Dh] by its positions into [N, K, R, Dh]."""
    x, cos, sin = x.view(out.shape), cos[:, None, None], sin[:, None, None]
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


def _turn_back(
    grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor
) -> None:
    """The gradient of ``_turn``: [N, K, R, Dh] into [N, H, Dh]."""
    out, cos, sin = out.view(grad.shape), cos[:, None, None], sin[:, None, None]
    half = grad.shape[-1] // 2
    torch.mul(grad, cos, out=out)
    out[..., :half].addcmul_(grad[..., half:], sin[..., half:])
    out[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
