"""Cross-entropy over a large vocabulary without the logits of all rows at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.training.cache_blocks import blocks

#: Logits that exist at once; a little less than 32 MiB in fp32. The GNU C library gives larger
#: blocks back at once, and new pages cost more than the weights that are read once more.
_CHUNK_NUMBERS = 2**23 - 2**12
#: Logits that a core's cache holds; 1 MiB in fp32.
_CACHED_NUMBERS = 2**18


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of the cross-entropies, in fp32, or fp64 if the logits are.

    Args:
        logits: [N, V].
        labels: [N].
        label_weights: What each counts, [N]; 1 if None.

    Returns:
        A scalar.
    """
    if label_weights is None:
        return functional.cross_entropy(_wide(logits), labels, reduction="sum")
    losses = functional.cross_entropy(_wide(logits), labels, reduction="none")
    return (losses * label_weights).sum()


@torch.no_grad()
def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each label, and what has the largest logit in its place.

    Args:
        logits: [N, V].
        labels: [N].

    Returns:
        fp32 [N], or fp64 if the logits are, and int64 [N].
    """
    losses = functional.cross_entropy(_wide(logits), labels, reduction="none")
    return losses, logits.argmax(dim=-1)


@torch.no_grad()
def projected_token_scores(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``token_scores(hidden @ weight.T + bias, labels)`` in chunks of rows.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        labels: [N].
        chunk_numbers: Most logits at once.

    Returns:
        fp32 [N], or fp64 if the logits are, and int64 [N].
    """
    chunk_rows = max(1, chunk_numbers // weight.shape[0])
    parts = [
        token_scores(functional.linear(part, weight, bias), labels_of_part)
        for part, labels_of_part in zip(
            hidden.split(chunk_rows), labels.split(chunk_rows), strict=True
        )
    ]
    losses, choices = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(choices)


def projected_label_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    label_weights: torch.Tensor | None = None,
    *,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``cross_entropy_sum(hidden @ weight.T + bias, labels, label_weights)`` in chunks of rows, and
    what each label has to do with it.

    The gradient of a chunk is made while its logits are there, so no logits are kept and none are
    computed twice. Memory: ``chunk_numbers`` numbers instead of N · V, three times over.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        labels: [N].
        label_weights: What each counts, fp32 [N]; 1 if None.
        chunk_numbers: Most logits at once.

    Returns:
        The weighted sum, a scalar in fp32, or fp64 if ``hidden`` is, differentiable once in
        ``hidden``, ``weight`` and ``bias``; and the cross-entropy of each label without its weight,
        [N] of the same, without a graph.
    """
    chunk_rows = max(1, chunk_numbers // weight.shape[0])
    # Chunks of like size: one of few rows costs as much as a large one.
    num_chunks = max(1, math.ceil(hidden.shape[0] / chunk_rows))
    chunk_rows = max(1, math.ceil(hidden.shape[0] / num_chunks))
    total, losses = _ProjectedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, label_weights, chunk_rows
    )
    return total, losses


class _ProjectedCrossEntropy(torch.autograd.Function):
    """d loss / d logits is softmax(logits) - onehot(label), per row, times the row's weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        label_weights: torch.Tensor | None,
        chunk_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        losses_of_all = torch.zeros(hidden.shape[0], dtype=dtype, device=hidden.device)
        wants_any = any(ctx.needs_input_grad)
        for start in range(0, hidden.shape[0], chunk_rows):
            part = slice(start, start + chunk_rows)
            errors = functional.linear(hidden[part], weight, bias).to(dtype)
            losses = losses_of_all[part]
            _errors_in_place(errors, labels[part], losses, wants_errors=wants_any)
            weights = None if label_weights is None else label_weights[part]
            total += (losses if weights is None else losses * weights).sum()
            if not wants_any:
                continue
            if weights is not None:
                errors *= weights[:, None]
            errors = errors.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(errors, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(errors.T, hidden[part])
            if grad_bias is not None:
                grad_bias += errors.sum(dim=0)
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(losses_of_all)
        return total, losses_of_all

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        gradients = tuple(
            None if gradient is None else gradient.mul_(grad_total.to(gradient.dtype))
            for gradient in ctx.gradients
        )
        del ctx.gradients
        return (*gradients, None, None, None)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """At least fp32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _errors_in_place(
    logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor, *, wants_errors: bool
) -> None:
    """Fill ``losses`` [N], and make logits, fp32 [N, V], to softmax(logits) - onehot(label).

    On a CPU a few rows at a time, which stay in its cache; elsewhere all at once.
    """
    numbers = _CACHED_NUMBERS if logits.device.type == "cpu" else logits.numel()
    for part in blocks(*logits.shape, numbers=numbers):
        rows, of_rows = logits[part], labels[part, None]
        rows -= rows.amax(dim=-1, keepdim=True)
        picked = rows.gather(1, of_rows).squeeze(1)
        sums = rows.exp_().sum(dim=-1)
        torch.sub(sums.log(), picked, out=losses[part])
        if wants_errors:
            rows /= sums[:, None]
            rows.scatter_add_(1, of_rows, -torch.ones_like(picked)[:, None])
