"""Attention for rows laid end to end: each row sees the common prefix and itself.

transformers lets a model take its attention from outside (``AttentionInterface``) and hands on
keyword arguments of the model's call, by which the layout of the rows comes here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from luthier.errors import NotSupportedError
from luthier.training.data.packing import RowGroup, RowLayout

NAME = "luthier_packed_training"
#: What models pass beside and that changes nothing for rows within ``longest_exact_row``.
_HARMLESS = frozenset(
    {"cache_position", "is_causal", "output_attentions", "output_hidden_states"}
    | {"position_ids", "sliding_window", "use_cache"}
)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_layout: RowLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls; Dh is the size of a head.

    Args:
        module: The attention layer.
        query: [1, H, N, Dh].
        key: [1, K, N, Dh], positions applied.
        value: [1, K, N, Dh].
        attention_mask: Not used: the layout says who sees whom.
        row_layout: Of the N tokens.
        scaling: Of the scores.
        dropout: Share of the scores to drop.
        **others: Further features of the model; refused if they would matter.

    Returns:
        [1, N, H, Dh] and no weights.

    Raises:
        NotSupportedError: If the model asks for what this attention does not do.
    """
    for name, value_given in others.items():
        if value_given is not None and name not in _HARMLESS:
            raise NotSupportedError(
                f"{type(module).__name__} asks its attention for {name!r}, which packed rows lack"
            )
    num_prefix, groups = row_layout.prefix_length, row_layout.groups
    # One split has one backward; slices would each fill a gradient of the full size.
    sizes = [num_prefix, *(group.num_rows * group.length for group in groups)]
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    mask = _mask(row_layout, query) if num_prefix and groups else None
    outputs = []
    if num_prefix:
        prefix = _attend(queries[0], keys[0], values[0], None, scaling, dropout)
        outputs.append(prefix.transpose(1, 2).flatten(0, 1))
    for group, *tensors in zip(groups, queries[1:], keys[1:], values[1:], strict=True):
        group_query, group_key, group_value = (_rows_of(tensor, group) for tensor in tensors)
        group_mask = None
        if mask is not None:
            group_key = torch.cat([keys[0].expand(group.num_rows, -1, -1, -1), group_key], dim=2)
            group_value = torch.cat(
                [values[0].expand(group.num_rows, -1, -1, -1), group_value], dim=2
            )
            group_mask = mask[: group.length, : num_prefix + group.length]
        out = _attend(group_query, group_key, group_value, group_mask, scaling, dropout)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def with_packed_attention(model: PreTrainedModel) -> None:
    """Make a network attend with ``packed_attention`` from now on.

    Args:
        model: Changed in place, its config too; hand in an ``own_module_tree``.
    """
    AttentionInterface.register(NAME, packed_attention)
    model.config._attn_implementation = NAME


def longest_exact_row(model: PreTrainedModel) -> int | None:
    """Up to which length every layer's attention is plainly causal; None for any.

    Args:
        model: A decoder-only network. Windows and chunks in its config limit the length.

    Returns:
        Tokens, or None.
    """
    config = model.config.get_text_config()
    limits = [
        limit
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(limit := getattr(config, name, None), int)
    ]
    return min(limits, default=None)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """[B, H, T, Dh]; causal if there is no mask."""
    num_groups = query.shape[1] // key.shape[1]
    if num_groups > 1 and mask is not None and query.is_cuda:
        # The kernels for CUDA share keys among heads only where there is no mask.
        key = key.repeat_interleave(num_groups, dim=1)
        value = value.repeat_interleave(num_groups, dim=1)
        num_groups = 1
    output: torch.Tensor = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=num_groups > 1,
    )
    return output


def _rows_of(tensor: torch.Tensor, group: RowGroup) -> torch.Tensor:
    """[1, H, B·T, Dh] as [B, H, T, Dh]; a view."""
    rows: torch.Tensor = tensor[0].unflatten(1, (group.num_rows, group.length))
    return rows.transpose(0, 1)


def _mask(layout: RowLayout, like: torch.Tensor) -> torch.Tensor:
    """[longest row, prefix + longest row]: True on the prefix and on what is not later."""
    longest = layout.longest - layout.prefix_length
    ones = torch.ones(longest, layout.longest, dtype=torch.bool, device=like.device)
    return ones.tril(layout.prefix_length)
