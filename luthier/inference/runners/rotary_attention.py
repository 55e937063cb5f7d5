"""Llama-like attention layers on packed rows, with positions applied by the kernel that attends.

transformers turns queries and keys to their positions by ten operations a layer, before attention
is called. Layers of known classes do without here; where the kernel cannot be used, they go their
own way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedBatch, refuse_unknown
from luthier.inference.runners.row_attention import attend_rows, has_row_attention
from luthier.inference.runners.score_attention import ScoreOptions

#: Classes that do what ``_attend`` does, and what each says about how far its layers look back.
_WINDOWS: dict[str, Callable[[Any], int | None]] = {
    "GemmaAttention": lambda layer: None,
    "GraniteAttention": lambda layer: None,
    "LlamaAttention": lambda layer: None,
    "MistralAttention": lambda layer: getattr(layer.config, "sliding_window", None),
    "Qwen2Attention": lambda layer: layer.sliding_window,
    "Qwen3Attention": lambda layer: layer.sliding_window,
}


def quicken_rotary_attention(model: nn.Module) -> None:
    """Let the layers of a network that are of a known class apply positions by the kernel.

    Args:
        model: A network of its own, whose ``CurrentStep`` says who sees whom. What its layers do
            is replaced.
    """
    module: Any
    for module in model.modules():
        name = type(module).__name__
        if name in _WINDOWS:
            module.forward = functools.partial(_attend, module, _WINDOWS[name](module))


def _attend(
    layer: Any, window: int | None, hidden_states: torch.Tensor, **others: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    step, positions = CurrentStep.of(layer), others.get("position_embeddings")
    if (
        not isinstance(step, PackedBatch)
        or positions is None
        or not has_row_attention(hidden_states[..., : layer.head_dim])
    ):
        return type(layer).forward(layer, hidden_states, **others)  # type: ignore[no-any-return]
    refuse_unknown(layer, others | {"position_embeddings": None})
    heads = (hidden_states.shape[1], -1, layer.head_dim)
    query, key = layer.q_proj(hidden_states).view(heads), layer.k_proj(hidden_states).view(heads)
    value = layer.v_proj(hidden_states).view(heads)
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query), layer.k_norm(key)
    cosines, sines = positions
    mixed = attend_rows(
        query.transpose(0, 1),
        (key.transpose(0, 1), value.transpose(0, 1)),
        step.arena.read(layer.layer_idx),
        step.table,
        options=ScoreOptions(scaling=layer.scaling),
        window=window,
        positions=(cosines.contiguous(), sines.contiguous()),
    )
    return layer.o_proj(mixed.view(1, len(mixed), -1)), None
