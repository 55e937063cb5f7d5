"""Keys and values that stand before a model's own: their shape, and the cache that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from luthier.adapters.prompts.prefix_tuning import PrefixShape
from luthier.errors import NotSupportedError

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel


@torch.no_grad()
def prefix_shape_of(base_model: BaseModel) -> PrefixShape:
    """What keys and values of one token are like in a model, by running one token through it.

    Args:
        base_model: Only read.

    Returns:
        The shape, that of the decoder's attention to itself for a seq2seq model.

    Raises:
        NotSupportedError: If the layers differ from each other, keep windows of the text only, or
            have keys and values of different sizes.
    """
    token = torch.full((1, 1), base_model.pad_token_id, device=base_model.device)
    decoder = {} if base_model.kind == "causal" else {"decoder_input_ids": token}
    cache = base_model.model(input_ids=token, use_cache=True, **decoder).past_key_values
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layers = list(getattr(cache, "layers", ()))
    shapes = {
        (each.keys.shape[1], each.keys.shape[3], each.values.shape[3])
        for each in layers
        if type(each) is DynamicLayer
    }
    if not layers or len(shapes) != 1 or not all(type(each) is DynamicLayer for each in layers):
        raise NotSupportedError(
            f"prefix tuning needs layers that are alike and attend to all of the text; those of "
            f"base model {base_model.name!r} are not"
        )
    ((num_kv_heads, key_dim, value_dim),) = shapes
    if key_dim != value_dim:
        raise NotSupportedError(
            f"prefix tuning needs keys and values of one size; base model {base_model.name!r} has "
            f"keys of {key_dim} and values of {value_dim}"
        )
    return PrefixShape(len(layers), num_kv_heads, key_dim)


def prefix_cache(key_values: torch.Tensor, *, num_rows: int, is_seq2seq: bool) -> Cache:
    """A cache in which every row begins with the same keys and values.

    Args:
        key_values: [2·L, K, P, Dh], layer 0's keys, its values, layer 1's keys …
        num_rows: B.
        is_seq2seq: Whether they stand in a decoder that also attends to an encoder.

    Returns:
        A new cache; gradients of all rows add up in ``key_values``.
    """
    expanded = key_values[:, None].expand(-1, num_rows, -1, -1, -1)
    return cache_of_rows(expanded, is_seq2seq=is_seq2seq)


def cache_of_rows(key_values: torch.Tensor, *, is_seq2seq: bool) -> Cache:
    """A cache in which every row begins with keys and values of its own.

    Args:
        key_values: [2·L, B, K, P, Dh], in the order of ``prefix_cache``.
        is_seq2seq: Whether they stand in a decoder that also attends to an encoder.

    Returns:
        A new cache.
    """
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(key_values.unflatten(0, (-1, 2)).unbind(0)):
        cache.update(keys, values, layer)
    return EncoderDecoderCache(cache, DynamicCache()) if is_seq2seq else cache
