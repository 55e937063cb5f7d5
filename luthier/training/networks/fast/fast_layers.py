"""Faster ways through the layers of Llama-like models on a CPU, beside the models' own.

A layer keeps its place, its class and its children, so that adapters find what they change; only
its ``forward`` is replaced, by one that goes the model's own way wherever it cannot do the same.
Norms and feed-forward parts are known by what they are made of. Attention is known by its class:
what some classes do at late positions could not be seen on a few tokens. Behind the last layer's
attention only those tokens go on from which a label is predicted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from luthier.training.networks.fast.attention_part import AttentionProducts, normed_attention
from luthier.training.networks.fast.frozen_product import FrozenProduct, frozen_product_of
from luthier.training.networks.fast.gated_mlp import GatedMlp, gated_mlp, normed_gated_mlp, swiglu
from luthier.training.networks.fast.rms_norm import rms_norm
from luthier.training.networks.fast.rotary_attention import rotary_attention

_ATTENTION_CLASSES = frozenset(
    {"GraniteAttention", "LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"}
)
_LAYER_CLASSES = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
_DTYPES = (torch.float32, torch.float64)


def with_fast_layers(model: PreTrainedModel) -> bool:
    """Let a network's layers take the faster ways from now on, where there are any.

    Args:
        model: A network set up by ``with_packed_attention``. Changed in place; hand in an
            ``own_module_tree``.

    Returns:
        Whether anything changed. Compare what the network gives before and after: that layers are
        made of the same parts does not prove that they do the same.
    """
    if model.device.type != "cpu" or model.dtype not in _DTYPES:
        return False
    num_changed = 0
    for layer in model.modules():
        forward = _fast_forward(layer)
        if forward is not None:
            vars(layer)["forward"] = functools.partial(forward, layer)
            num_changed += 1
    return num_changed > 0


def drop_unlabelled(model: PreTrainedModel) -> bool:
    """Let a network's last layer go on with chosen tokens only, from now on.

    Args:
        model: After ``with_fast_layers``. Changed in place. Its calls take ``label_places`` then,
            the chosen tokens in rising order, [M]; the last hidden states are those of the M.

    Returns:
        Whether the network's layers are known. If not, nothing changed.
    """
    layers = [each for each in model.modules() if type(each).__name__ in _LAYER_CLASSES]
    if not layers:
        return False
    vars(layers[-1])["forward"] = functools.partial(_run_last, layers[-1])
    return True


def _fast_forward(layer: nn.Module) -> Any:
    if type(layer).__name__ in _LAYER_CLASSES:
        return _run_layer
    if type(layer).__name__ in _ATTENTION_CLASSES:
        return _attend
    children = dict(layer.named_children())
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        is_silu = isinstance(children["act_fn"], SiLUActivation | nn.SiLU)
        return _feed_forward if is_silu else None
    if not children and hasattr(layer, "variance_epsilon"):
        return _normalise if [name for name, _ in layer.named_parameters()] == ["weight"] else None
    return None


def _normalise(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if not _is_plain(hidden_states) or layer.weight.dtype != hidden_states.dtype:
        return _own_forward(layer, hidden_states)  # type: ignore[no-any-return]
    return rms_norm(hidden_states, layer.weight, layer.variance_epsilon)


def _feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if not _is_plain(x):
        return _own_forward(layer, x)  # type: ignore[no-any-return]
    products = _mlp_products(layer, x)
    if products is not None:
        return gated_mlp(x, products)
    output: torch.Tensor = layer.down_proj(swiglu(layer.gate_proj(x), layer.up_proj(x)))
    return output


def _attend(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    row_layouts, positions = kwargs.get("row_layouts"), kwargs.get("position_embeddings")
    if (
        args
        or _is_dropping(layer)
        or not row_layouts
        or positions is None
        or not _is_plain(hidden_states)
    ):
        return _own_forward(layer, hidden_states, *args, **kwargs)
    cos, sin = positions
    heads = (hidden_states.shape[1], -1, layer.head_dim)
    query, key = layer.q_proj(hidden_states).view(heads), layer.k_proj(hidden_states).view(heads)
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query), layer.k_norm(key)
    output = rotary_attention(
        query,
        key,
        layer.v_proj(hidden_states).view(heads),
        cos[0],
        sin[0],
        row_layouts=row_layouts,
        scaling=layer.scaling,
    )
    places = kwargs.get("kept_places")
    return layer.o_proj((output if places is None else output[places])[None]), None


def _run_layer(layer: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    attended = _normed_attention(layer, hidden_states, kwargs)
    if attended is None:
        added, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        attended = hidden_states + added
    return _feed_forward_part(layer, attended)


def _run_last(
    layer: Any, hidden_states: torch.Tensor, *, label_places: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    normed = layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(hidden_states=normed, kept_places=label_places, **kwargs)
    if attended.shape[1] != len(label_places):  # The model's own way knows no places.
        attended = attended[:, label_places]
    return _feed_forward_part(layer, hidden_states[:, label_places] + attended)


def _normed_attention(
    layer: Any, x: torch.Tensor, kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """``x`` and the layer's attention in one function; None if that cannot do the same."""
    attention, norm = layer.self_attn, layer.input_layernorm
    row_layouts, positions = kwargs.get("row_layouts"), kwargs.get("position_embeddings")
    if (
        vars(attention).get("forward") is None
        or hasattr(attention, "q_norm")
        or _is_dropping(attention)
        or not row_layouts
        or positions is None
        or not _is_frozen_norm(norm, x)
    ):
        return None
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    products = _products([getattr(attention, name) for name in names], x)
    if products is None:
        return None
    cos, sin = positions
    return normed_attention(
        *(x, AttentionProducts(*products), norm.weight, norm.variance_epsilon),
        cos=cos[0],
        sin=sin[0],
        head_size=attention.head_dim,
        row_layouts=row_layouts,
        scaling=attention.scaling,
    )


def _feed_forward_part(layer: Any, x: torch.Tensor) -> torch.Tensor:
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    if vars(mlp).get("forward") is not None and _is_frozen_norm(norm, x):
        products = _mlp_products(mlp, x)
        if products is not None:
            return normed_gated_mlp(x, products, norm.weight, norm.variance_epsilon)
    mixed: torch.Tensor = mlp(norm(x))
    return x + mixed


def _own_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _is_plain(x: torch.Tensor) -> bool:
    return x.dtype in _DTYPES and not torch.is_autocast_enabled(x.device.type)


def _is_frozen_norm(layer: Any, x: torch.Tensor) -> bool:
    return (
        _is_plain(x)
        and _fast_forward(layer) is _normalise
        and layer.weight.dtype == x.dtype
        and not layer.weight.requires_grad
    )


def _is_dropping(attention: Any) -> bool:
    return bool(attention.training and attention.attention_dropout > 0)


def _mlp_products(layer: Any, x: torch.Tensor) -> GatedMlp | None:
    products = _products([layer.gate_proj, layer.up_proj, layer.down_proj], x)
    return None if products is None else GatedMlp(*products)


def _products(layers: Sequence[nn.Module], x: torch.Tensor) -> list[FrozenProduct] | None:
    """What the layers do to tensors like ``x``; None if one must be asked itself."""
    products = [frozen_product_of(each, x) for each in layers]
    known = [each for each in products if each is not None]
    return known if len(known) == len(layers) else None
