"""Attention for rows of any length laid end to end in one forward pass.

transformers lets a model take its attention from outside (``AttentionInterface``). Ours stores the
new keys and values in the arena and attends row by row to the row's own range, so no row ever
sees, waits for or is padded to another.

```
    tokens of a step, [1, N]:  | A: one new token | B: one | C: 40 tokens of its prompt | D: one |
    linear layers, norms:        all N at once, whatever the rows are
    attention:                   A -> A's range   B -> ...   C -> causal within its range
```
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from luthier.errors import NotSupportedError
from luthier.inference.kv_cache import KvArena

NAME = "luthier_packed"
#: What models pass that changes nothing here, or is None for models without the feature.
_HARMLESS = frozenset({"dropout", "is_causal", "position_ids", "cache_position", "use_cache"})


@dataclass(frozen=True)
class PackedRow:
    """One row's tokens in a step.

    Args:
        first: Index of its first token among the step's.
        count: How many.
        kv_start: Where its range in the arena starts.
        kv_end: End of what it attends to: its range up to its last token of this step.
        mask: [count, kv_end - kv_start], True where attention is allowed; None if it is plainly
            causal or there is one token.
    """

    first: int
    count: int
    kv_start: int
    kv_end: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedBatch:
    """Everything attention must know about a step.

    Args:
        arena: Keys and values.
        slots: Where the step's tokens go in it, [N].
        rows: In the order of their tokens.
    """

    arena: KvArena
    slots: torch.Tensor
    rows: tuple[PackedRow, ...]


@dataclass
class ShapeProbe:
    """Passed instead of a ``PackedBatch`` to learn each layer's (K, keys' Dh, values' Dh)."""

    by_layer: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_batch: PackedBatch | ShapeProbe,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    Args:
        module: The attention layer; its ``layer_idx`` says which.
        query: [1, H, N, Dh].
        key: [1, K, N, Dh], positions applied.
        value: [1, K, N, Dh].
        attention_mask: Not used: the batch says who sees what.
        packed_batch: The step.
        scaling: Of the scores.
        **others: Further features of the model; refused if they would matter.

    Returns:
        [1, N, H, Dh] and no weights.

    Raises:
        NotSupportedError: If the model asks for what this attention does not do.
    """
    _refuse_unknown(module, others)
    if isinstance(packed_batch, ShapeProbe):
        packed_batch.by_layer[module.layer_idx] = (key.shape[1], key.shape[3], value.shape[3])
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    keys, values = packed_batch.arena.write(module.layer_idx, packed_batch.slots, key[0], value[0])
    _, num_heads, num_tokens, head_dim = query.shape
    num_kv_heads = key.shape[1]
    # The query heads of a group share keys: seen as positions of one head they need no copies.
    grouped = query[0].transpose(0, 1).reshape(num_tokens, 1, num_kv_heads, -1, head_dim)
    singles = grouped.unbind(0)
    outputs: list[torch.Tensor] = []
    for row in packed_batch.rows:
        row_keys = keys[None, :, row.kv_start : row.kv_end]
        row_values = values[None, :, row.kv_start : row.kv_end]
        if row.count == 1:
            one = scaled_dot_product_attention(
                singles[row.first], row_keys, row_values, scale=scaling
            )
            outputs.append(one.view(1, num_heads, head_dim))
            continue
        several = scaled_dot_product_attention(
            query[:, :, row.first : row.first + row.count],
            row_keys,
            row_values,
            attn_mask=row.mask,
            is_causal=row.mask is None,
            scale=scaling,
            enable_gqa=num_heads != num_kv_heads,
        )
        outputs.append(several[0].transpose(0, 1))
    return torch.cat(outputs)[None], None


def _refuse_unknown(module: Any, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is not None and name not in _HARMLESS:
            raise NotSupportedError(
                f"{type(module).__name__} asks its attention for {name!r}, which packed rows lack"
            )


def with_packed_attention(model: PreTrainedModel) -> PreTrainedModel:
    """A second network on the same weights whose attention is ``packed_attention``.

    Costs a few objects and no tensor; the given model is not changed.
    """
    AttentionInterface.register(NAME, packed_attention)
    tensors = itertools.chain(model.parameters(), model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    twin.config._attn_implementation = NAME
    return twin
