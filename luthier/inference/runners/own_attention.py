"""Packed rows for models whose layers attend by code of their own: Falcon, GPT-J, GPT-Neo and more.

They take no attention from outside, so that of each layer is replaced where its queries, keys and
values are ready. Falcon rounds what ALiBi adds to bfloat16, at the key's position, so that is
looked up by position here and not by distance as for Bloom (``alibi_attention``).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.codegen.modeling_codegen import CodeGenAttention, CodeGenForCausalLM
from transformers.models.falcon.modeling_falcon import (
    FalconAttention,
    FalconForCausalLM,
    apply_rotary_pos_emb,
    build_alibi_tensor,
)
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoForCausalLM, GPTNeoSelfAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention, GPTJForCausalLM
from transformers.models.xglm.modeling_xglm import XGLMAttention, XGLMForCausalLM

from luthier.inference.runners.alibi_attention import attend_with_bias, causal_bias
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import packed_attention

_SMALLEST_TABLE = 256
_KNOWN = (
    CodeGenForCausalLM,
    FalconForCausalLM,
    GPTJForCausalLM,
    GPTNeoForCausalLM,
    XGLMForCausalLM,
)


def has_own_attention(model: PreTrainedModel) -> bool:
    """True for the models that ``OwnAttention`` knows."""
    return isinstance(model, _KNOWN)


class OwnAttention:
    """Attention of a network's layers on packed rows, installed when it is made.

    Args:
        model: A network of its own for which ``has_own_attention`` holds; its layers are changed,
            its ``CurrentStep`` says who sees whom.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._biases: torch.Tensor | None = None
        self._device = model.device
        for module in model.modules():
            if isinstance(module, FalconAttention):
                module.forward = functools.partial(_falcon_forward, module, self)
            elif isinstance(module, GPTJAttention | CodeGenAttention):
                module._attn = functools.partial(self._attend_headwise, module)
            elif isinstance(module, XGLMAttention):
                module.forward = functools.partial(_xglm_forward, module, self)
            elif isinstance(module, GPTNeoSelfAttention):
                module.layer_idx = module.layer_id
                window = module.config.window_size if module.attention_type == "local" else None
                module._attn = functools.partial(
                    self._attend_headwise, module, scaling=1.0, window=window
                )

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attend row by row.

        Args:
            layer: The model's attention layer.
            query: [1, H, N, Dh], positions applied.
            key: [1, K, N, Dh], likewise.
            value: [1, K, N, Dh].
            scaling: Of the scores; None is one over the root of Dh.
            window: Tokens that a token sees, itself included; None if it sees all before it.

        Returns:
            [1, N, H, Dh].
        """
        mixed, _ = packed_attention(
            layer,
            query,
            key,
            value,
            None,
            packed_batch=CurrentStep.of(layer),
            scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
            sliding_window=window,
        )
        return mixed

    def attend_with_alibi(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """The same, each key's share of the scores added; see ``attend``."""
        scaling = query.shape[3] ** -0.5
        bias = functools.partial(self._bias, layer.num_heads, scaling, query.dtype)
        step = CurrentStep.of(layer)
        return attend_with_bias(
            step, layer.layer_idx, query, key, value, scaling, bias, is_relative=False
        )

    def _attend_headwise(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """In GPT-J's place for it, which takes and gives [1, H, N, Dh]."""
        return self.attend(layer, query, key, value, **options).transpose(1, 2), None

    def _bias(
        self,
        num_heads: int,
        scaling: float,
        dtype: torch.dtype,
        num_new: int,
        num_seen: int,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        table = self._biases
        if table is None or table.shape[1] < num_seen or table.dtype != dtype:
            size = max(_SMALLEST_TABLE, 1 << (num_seen - 1).bit_length())
            ones = torch.ones(1, size, dtype=torch.long, device=self._device)
            of_scores = build_alibi_tensor(ones, num_heads, dtype=dtype)[:, 0]
            self._biases = table = of_scores * scaling
        return causal_bias(table[None, :, None, :num_seen], num_new, num_seen, mask)


def _falcon_forward(
    layer: Any,
    attention: OwnAttention,
    hidden_states: torch.Tensor,
    alibi: torch.Tensor | None,
    *args: Any,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    parts = layer._split_heads(layer.query_key_value(hidden_states))
    query, key, value = (part.transpose(1, 2) for part in parts)
    if alibi is None:
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        mixed = attention.attend(layer, query, key, value)
    else:
        mixed = attention.attend_with_alibi(layer, query, key, value)
    return layer.dense(mixed.flatten(2)), None


def _xglm_forward(
    layer: Any, attention: OwnAttention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    query, key, value = (
        project(hidden_states).unflatten(2, (-1, layer.head_dim)).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    mixed = attention.attend(layer, query, key, value, scaling=layer.scaling)
    return layer.out_proj(mixed.flatten(2)), None
