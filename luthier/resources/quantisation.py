"""Base models whose frozen linear layers take 8 or 4 bits a number: QLoRA's bases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.data_model.options.quantisation import INT8, NONE, QUANTISATIONS
from luthier.errors import InvalidInputError, NotSupportedError, did_you_mean
from luthier.resources.quantised_layers import (
    Int4Linear,
    Int8Linear,
    QuantisedLinear,
    require_bitsandbytes,
)


def parse_quantisation(word: str | None) -> str:
    """Read a word for how weights are held; None is none.

    Args:
        word: One of ``QUANTISATIONS``.

    Returns:
        The word.

    Raises:
        InvalidInputError: For another word.
        NotSupportedError: If bitsandbytes is needed and not installed.
    """
    if word is None or word == NONE:
        return NONE
    if word not in QUANTISATIONS:
        raise InvalidInputError(
            f"'quantization' must be one of {', '.join(QUANTISATIONS)}, "
            f"got {str(word)[:80]!r}{did_you_mean(str(word)[:80], QUANTISATIONS)}"
        )
    require_bitsandbytes()
    return word


def quantise(model: PreTrainedModel, word: str, *, device: torch.device) -> None:
    """Replace the linear layers of a model by quantised ones and move it; in place.

    Which layers: those that transformers lets bitsandbytes have. The output layer stays as it is,
    and so do layers that the architecture wants in full precision (T5's ``wo``).

    Args:
        model: With float weights.
        word: One of ``QUANTISATIONS``; ``none`` only moves it.
        device: Where it will run. Each layer is quantised there.

    Raises:
        NotSupportedError: If the model has no linear layer to be quantised.
    """
    if word != NONE:
        names = list(_quantised_names(model))
        if not names:
            raise NotSupportedError(
                f"a model of type {model.config.model_type!r} has no linear layers to quantise"
            )
        for name in names:
            layer = model.get_submodule(name)
            model.set_submodule(name, _quantised(layer, word, device))
    model.to(device)


def quantised_copy(model: PreTrainedModel, word: str) -> PreTrainedModel:
    """A model with quantised layers around the other tensors of the given one.

    Args:
        model: With float weights; not changed.
        word: One of ``QUANTISATIONS`` but ``none``.

    Returns:
        A new model on the same device.

    Raises:
        NotSupportedError: If the model has no linear layer to be quantised.
    """
    tensors = chain(model.parameters(), model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    quantise(twin, word, device=model.device)
    return twin


def _quantised_names(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, layer in model.named_modules():
        is_linear = isinstance(layer, nn.Linear | Conv1D)
        if is_linear and layer is not head and not kept & set(name.split(".")):
            yield name


def _quantised(layer: nn.Module, word: str, device: torch.device) -> QuantisedLinear:
    weight: torch.Tensor = layer.weight.detach().to(device)  # type: ignore[operator]
    if isinstance(layer, Conv1D):
        weight = weight.T
    bias = None if layer.bias is None else layer.bias.detach().to(device)  # type: ignore[operator]
    if word == INT8:
        return Int8Linear.of(weight, bias)
    return Int4Linear.of(weight, bias, quant_type=word)
