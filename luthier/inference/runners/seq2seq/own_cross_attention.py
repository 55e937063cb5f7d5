"""Packed rows for decoders whose layers attend to both sides by code of their own: LED and MVP.

They take no attention from outside, but are built as BART is, which does: each layer gets a forward
pass that hands its queries, keys and values to ours.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.led.modeling_led import LEDDecoderAttention
from transformers.models.mvp.modeling_mvp import MvpAttention

from luthier.inference.runners.seq2seq.cross_attention import encoder_decoder_attention


def replace_own_attention(network: nn.Module) -> None:
    """Let the layers of a network attend by ``encoder_decoder_attention`` that cannot be told to.

    Args:
        network: One that nobody shares; the layers that are known here are changed.
    """
    for module in network.modules():
        if isinstance(module, LEDDecoderAttention):
            module.forward = functools.partial(_led_forward, module)
        elif isinstance(module, MvpAttention):
            module.forward = functools.partial(_attend, module)


def _led_forward(layer: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
    return *_attend(layer, *args, **kwargs), None


def _attend(
    layer: Any,
    hidden_states: torch.Tensor,
    key_value_states: torch.Tensor | None = None,
    past_key_values: EncoderDecoderCache | None = None,
    attention_mask: torch.Tensor | None = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What BART's layers do; the caches are those of ``cross_attention``."""
    query = _heads(layer, layer.q_proj(hidden_states))
    key, value = _keys_and_values(layer, hidden_states, key_value_states, past_key_values)
    mixed, _ = encoder_decoder_attention(
        layer, query, key, value, None, scaling=layer.scaling, **others
    )
    output: torch.Tensor = layer.out_proj(mixed.flatten(2))
    return output, None


def _keys_and_values(
    layer: Any,
    hidden_states: torch.Tensor,
    encoded: torch.Tensor | None,
    cache: EncoderDecoderCache | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    index = layer.layer_idx
    if encoded is not None and cache is not None and cache.is_updated.get(index):
        kept = cache.cross_attention_cache.layers[index]
        return kept.keys, kept.values
    states = hidden_states if encoded is None else encoded
    key = _heads(layer, layer.k_proj(states))
    value = _heads(layer, layer.v_proj(states))
    if cache is not None and encoded is not None:
        cache.cross_attention_cache.update(key, value, index)
        cache.is_updated[index] = True
    return key, value


def _heads(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """[1, N, D] to [1, H, N, Dh]."""
    heads: torch.Tensor = states.unflatten(2, (layer.num_heads, layer.head_dim))
    return heads.transpose(1, 2)
