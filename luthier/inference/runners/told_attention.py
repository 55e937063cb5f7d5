"""``packed_attention`` as causal models call it, whatever they hand on and whatever they keep.

Keys and values of an arena are of one width. Where a model's differ, as where they are made of
something smaller (DeepSeek), the narrower ones are filled up with zeros, which adds nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import packed_attention

NAME = "luthier_told"


def told_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    Args:
        module: The attention layer; its network's ``CurrentStep`` says who sees whom.
        query: [1, H, N, Dk].
        key: [1, K, N, Dk].
        value: [1, K, N, Dv].
        attention_mask: Not used.
        scaling: Of the scores; None is one over the root of Dk.
        **others: As ``packed_attention``.

    Returns:
        [1, N, H, Dv] and no weights.

    Raises:
        NotSupportedError: As ``packed_attention``.
    """
    key_dim, value_dim = key.shape[3], value.shape[3]
    missing = key_dim - value_dim
    if missing:
        scaling = key_dim**-0.5 if scaling is None else scaling
        query, key = pad(query, (0, max(0, -missing))), pad(key, (0, max(0, -missing)))
        value = pad(value, (0, max(0, missing)))
    step = CurrentStep.of(module)
    mixed, _ = packed_attention(
        module, query, key, value, attention_mask, packed_batch=step, scaling=scaling, **others
    )
    return mixed[..., :value_dim], None
