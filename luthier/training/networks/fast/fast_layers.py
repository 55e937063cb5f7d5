"""Faster ways through the layers of Llama-like models on a CPU, beside the models' own.

A layer keeps its place, its class and its children, so that adapters find what they change; only
its ``forward`` is replaced, by one that goes the model's own way wherever it cannot do the same.
Norms and feed-forward parts are known by what they are made of. Attention is known by its class:
what some classes do at late positions could not be seen on a few tokens. Behind the last layer's
attention only those tokens go on from which a label is predicted.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from luthier.training.networks.fast.gated_mlp import frozen_gated_mlp, swiglu
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
    gate, up, down = layer.gate_proj, layer.up_proj, layer.down_proj
    if all(_is_frozen_linear(each, x.dtype) for each in (gate, up, down)):
        return frozen_gated_mlp(x, gate.weight, up.weight, down.weight)
    output: torch.Tensor = down(swiglu(gate(x), up(x)))
    return output


def _attend(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    row_layouts, positions = kwargs.get("row_layouts"), kwargs.get("position_embeddings")
    is_dropping = layer.training and layer.attention_dropout > 0
    if args or is_dropping or not row_layouts or positions is None or not _is_plain(hidden_states):
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


def _run_last(
    layer: Any, hidden_states: torch.Tensor, *, label_places: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    normed = layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(hidden_states=normed, kept_places=label_places, **kwargs)
    if attended.shape[1] != len(label_places):  # The model's own way knows no places.
        attended = attended[:, label_places]
    hidden_states = hidden_states[:, label_places] + attended
    mixed: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden_states))
    return hidden_states + mixed


def _own_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _is_plain(x: torch.Tensor) -> bool:
    return x.dtype in _DTYPES and not torch.is_autocast_enabled(x.device.type)


def _is_frozen_linear(layer: nn.Module, dtype: torch.dtype) -> bool:
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and layer.weight.dtype == dtype
        and not layer.weight.requires_grad
    )
