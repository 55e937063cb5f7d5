"""Attention that looks at its scores: soft-capped ones, and sinks that take a part of the weight.

Fused kernels hide the scores, so models that change them need each step spelled out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ScoreOptions:
    """What happens to scores before they become weights.

    Args:
        scaling: Factor of the products; None is one over the root of Dh.
        softcap: C: scores become C · tanh(scores / C).
        sinks: One more score per head that no value belongs to, [H].
    """

    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


def score_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    options: ScoreOptions,
) -> torch.Tensor:
    """Attend with every step in the open.

    Args:
        query: The last n of t tokens, [1, H, n, Dh].
        keys: [1, K, t, Dh].
        values: [1, K, t, Dh].
        mask: True where attention is allowed, [n, t]; None is causal.
        options: What happens to scores.

    Returns:
        [1, H, n, Dh].

    Source:
        Soft-capping: Gemma 2, https://arxiv.org/abs/2408.00118, section 2. Sinks: one learned
        logit per head in the softmax's denominator, https://arxiv.org/abs/2508.10925, section 2.3.
    """
    _, num_heads, num_new, head_dim = query.shape
    num_kv_heads, num_keys = keys.shape[1:3]
    scaling = head_dim**-0.5 if options.scaling is None else options.scaling
    # Query heads of a group share keys: seen as more tokens of one head they need no copies.
    grouped = query[0].reshape(num_kv_heads, -1, head_dim)
    scores = (grouped @ keys[0].transpose(1, 2)).float() * scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.view(num_heads, num_new, num_keys)
    if mask is None:
        ones = torch.ones(num_new, num_keys, dtype=torch.bool, device=query.device)
        mask = ones.tril(diagonal=num_keys - num_new)
    scores = scores.masked_fill(~mask, float("-inf"))
    if options.sinks is not None:
        sinks = options.sinks.float().view(num_heads, 1, 1).expand(-1, num_new, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :num_keys].to(values.dtype)
    mixed = weights.view(num_kv_heads, -1, num_keys) @ values[0]
    return mixed.view(1, num_heads, num_new, head_dim)
