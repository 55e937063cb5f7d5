"""Attention for rows laid end to end: each row sees the common prefix and itself.

transformers lets a model take its attention from outside (``AttentionInterface``) and hands on
keyword arguments of the model's call, by which the layout of the rows comes here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
    | {"position_ids", "sliding_window", "use_cache", "kept_places", "label_places"}
)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_layouts: Sequence[RowLayout],
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
        row_layouts: Of the N tokens: one batch after another, which do not see each other.
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
    # One split has one backward; slices would each fill a gradient of the full size.
    sizes = [size for layout in row_layouts for size in layout.sizes]
    pieces = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs: list[torch.Tensor] = []
    for layout in row_layouts:
        of_layout = list(itertools.islice(pieces, len(layout.sizes)))
        outputs += _attend_batch(layout, of_layout, scaling, dropout)
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


def _attend_batch(
    layout: RowLayout, pieces: list[tuple[torch.Tensor, ...]], scaling: float | None, dropout: float
) -> Iterator[torch.Tensor]:
    """Outputs of one batch, [n, H, Dh] for its prefix and for each group.

    Args:
        layout: Of the batch.
        pieces: Queries, keys and values of the prefix, if there is one, and of each group.
        scaling: Of the scores.
        dropout: Share of the scores to drop.
    """
    num_prefix, groups = layout.prefix_length, layout.groups
    mask = _mask(layout, pieces[0][0]) if num_prefix and groups else None
    prefix_key = prefix_value = None
    if num_prefix:
        prefix_query, prefix_key, prefix_value = pieces.pop(0)
        prefix = _attend(prefix_query, prefix_key, prefix_value, None, scaling, dropout)
        yield prefix.transpose(1, 2).flatten(0, 1)
    for group, tensors in zip(groups, pieces, strict=True):
        query, key, value = (_rows_of(tensor, group) for tensor in tensors)
        group_mask = None
        if mask is not None and prefix_key is not None and prefix_value is not None:
            key = torch.cat([prefix_key.expand(group.num_rows, -1, -1, -1), key], dim=2)
            value = torch.cat([prefix_value.expand(group.num_rows, -1, -1, -1), value], dim=2)
            group_mask = mask[: group.length, : num_prefix + group.length]
        out = _attend(query, key, value, group_mask, scaling, dropout)
        yield out.transpose(1, 2).flatten(0, 1)


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
