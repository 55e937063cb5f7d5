"""Packed rows for models whose scores fall with distance (ALiBi): Bloom and MPT.

Their attention layers compute everything themselves, so each gets a forward pass of its own here:
the model's projections, our attention. What a key adds to a score is its distance times the head's
slope; softmax does not mind a constant, so one row of numbers serves every query:

```
    added to the scores of a row with T tokens:   slope · [1 - T, ..., -1, 0]
```

Source:
    Press et al. 2022, https://arxiv.org/abs/2108.12409
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomForCausalLM
from transformers.models.mpt.modeling_mpt import MptAttention, MptForCausalLM

from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedBatch, ShapeProbe
from luthier.inference.runners.row_attention import attend_rows, has_row_attention
from luthier.inference.runners.score_attention import ScoreOptions

#: Something added to scores, given how many tokens look, how many they look at, and a mask.
Bias: TypeAlias = Callable[[int, int, torch.Tensor | None], torch.Tensor]

_SMALLEST_TABLE = 256


def uses_alibi(model: PreTrainedModel) -> bool:
    """True for the models that ``AlibiAttention`` knows."""
    return isinstance(model, BloomForCausalLM | MptForCausalLM)


class AlibiAttention:
    """Attention of a network's layers on packed rows, installed when it is made.

    Args:
        model: A network of its own for which ``uses_alibi`` holds; its layers are changed, its
            ``CurrentStep`` says who sees whom.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._slopes = _slopes_of(model)
        self._table = self._slopes[:, None] * 0
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device)
        self._step: PackedBatch | ShapeProbe = ShapeProbe()
        model.register_forward_pre_hook(self._take_step, with_kwargs=True)
        for module in model.modules():
            if isinstance(module, BloomAttention):
                module.forward = functools.partial(_bloom_forward, module, self)
            elif isinstance(module, MptAttention):
                module.forward = functools.partial(_mpt_forward, module, self)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend row by row.

        Args:
            layer: Its index.
            query: [1, H, N, Dh].
            key: [1, H, N, Dh].
            value: [1, H, N, Dh].
            scaling: Of the scores.

        Returns:
            [1, N, H · Dh].
        """
        bias = functools.partial(self._bias, query.dtype)
        mixed = attend_with_bias(
            self._step, layer, query, key, value, scaling, bias, is_relative=True
        )
        return mixed.flatten(2)

    def _bias(
        self, dtype: torch.dtype, num_new: int, num_seen: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if self._table.shape[1] < num_seen or self._table.dtype != dtype:
            size = max(_SMALLEST_TABLE, 1 << (num_seen - 1).bit_length())
            distances = torch.arange(1 - size, 1, device=self._slopes.device)
            self._table = (self._slopes[:, None] * distances).to(dtype)
        bias = self._table[None, :, None, self._table.shape[1] - num_seen :]
        return causal_bias(bias, num_new, num_seen, mask)

    def _take_step(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """These models know no positions."""
        others = dict(kwargs)
        self._step = CurrentStep.of(model)
        others.pop("position_ids", None)
        if isinstance(model, MptForCausalLM):  # it must have a mask, and takes any of four axes
            others["attention_mask"] = self._no_mask
        return args, others


def attend_with_bias(
    step: PackedBatch | ShapeProbe,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bias: Bias,
    *,
    is_relative: bool,
) -> torch.Tensor:
    """Attend row by row with something added to the scores.

    Args:
        step: Who sees whom.
        layer: Its index.
        query: [1, H, N, Dh].
        key: [1, K, N, Dh].
        value: [1, K, N, Dh].
        scaling: Of the scores.
        bias: What is added for the last n of t tokens, given n, t and the row's mask.
        is_relative: Whether that depends on the distance between two tokens alone.

    Returns:
        [1, N, H, Dh].
    """
    is_grouped = query.shape[1] != key.shape[1]
    if isinstance(step, ShapeProbe):
        step.by_layer[layer] = (key.shape[1], key.shape[3], value.shape[3])
        step.windows[layer] = None
        added = bias(query.shape[2], query.shape[2], None)
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=added, scale=scaling, enable_gqa=is_grouped
        )
        return out.transpose(1, 2)
    if is_relative and has_row_attention(query, key, value):
        longest = max(row.kv_end - row.kv_start for row in step.rows)
        mixed = attend_rows(
            query[0],
            (key[0], value[0]),
            step.arena.read(layer),
            step.table,
            options=ScoreOptions(scaling=scaling),
            bias=bias(1, longest, None)[0, :, 0],
        )
        return mixed[None]
    keys, values = step.arena.write(layer, step.slots, key[0], value[0])
    outputs = []
    for row in step.rows:
        span = slice(row.kv_start, row.kv_end)
        one = scaled_dot_product_attention(
            query[:, :, row.first : row.first + row.count],
            keys[None, :, span],
            values[None, :, span],
            attn_mask=bias(row.count, row.kv_end - row.kv_start, row.mask),
            scale=scaling,
            enable_gqa=is_grouped,
        )
        outputs.append(one.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def causal_bias(
    bias: torch.Tensor, num_new: int, num_seen: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """What is added to the scores of the last tokens of a row, that none sees what follows it.

    Args:
        bias: Of each key, [1, H, 1, t].
        num_new: n.
        num_seen: t.
        mask: True where attention is allowed, [n, t]; None is plainly causal.

    Returns:
        [1, H, n, t], or [1, H, 1, t] for one token.
    """
    if num_new == 1:
        return bias
    if mask is None:
        ones = torch.ones(num_new, num_seen, dtype=torch.bool, device=bias.device)
        mask = ones.tril(diagonal=num_seen - num_new)
    return bias.masked_fill(~mask, float("-inf"))


def _slopes_of(model: PreTrainedModel) -> torch.Tensor:
    """Each head's slope as the model makes it, [H]."""
    stack: Any = model.transformer
    device = model.device
    if isinstance(model, BloomForCausalLM):
        ones = torch.ones(1, 2, device=device)
        row = stack.build_alibi_tensor(ones, stack.num_heads, dtype=torch.float32)
    else:
        row = stack.build_mpt_alibi_tensor(stack.num_heads, 2, device=device)
    row = row.reshape(-1, 2).float()
    slopes: torch.Tensor = row[:, 1] - row[:, 0]
    return slopes


def _bloom_forward(
    layer: Any,
    attention: AlibiAttention,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    query, key, value = layer._reshape(layer.query_key_value(hidden_states))
    mixed = attention.attend(layer.layer_idx, query, key, value, layer.inv_norm_factor)
    return residual + layer.dense(mixed), None


def _mpt_forward(
    layer: Any, attention: AlibiAttention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    joint = layer.Wqkv(hidden_states)
    if layer.clip_qkv:
        joint = joint.clamp(min=-layer.clip_qkv, max=layer.clip_qkv)
    query, key, value = (
        part.unflatten(2, (layer.n_heads, layer.head_dim)).transpose(1, 2)
        for part in joint.chunk(3, dim=2)
    )
    mixed = attention.attend(layer.layer_idx, query, key, value, layer.softmax_scale)
    return layer.out_proj(mixed), None
