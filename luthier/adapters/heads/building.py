"""Classification heads made for a model: new ones, and PEFT's saved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.heads.classification_head import ClassificationHead, require_labels
from luthier.adapters.heads.peft_format import split_head
from luthier.adapters.lora.building import create_lora, read_lora
from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.errors import ArtifactError, NotSupportedError

#: Of new heads, where the model's configuration says nothing: transformers' own default.
_INITIALIZER_RANGE = 0.02


def create_head(
    model: PreTrainedModel,
    labels: Sequence[str],
    *,
    lora: LoraConfig | None = None,
    seed: int,
    limits: LoraLimits | None = None,
) -> ClassificationHead:
    """A new head, ready to be trained, on a causal model.

    The same model, labels, config and seed give the same tensors.

    Args:
        model: The base model's network; not changed.
        labels: Name of each class; two at least, each once.
        lora: What is tuned below the head; None is nothing.
        seed: Of the random starts.
        limits: Caps of the LoRA; the class's defaults if None.

    Returns:
        Tensors in fp32, or fp64 for such a base, on the base's device.

    Raises:
        InvalidInputError: If the labels are too few or not different, or the LoRA does not fit.
        NotSupportedError: If the model is not causal, or does more to its logits than its output
            layer.
    """
    require_labels(labels)
    _require_causal(model)
    _require_plain_scores(model)
    generator = torch.Generator().manual_seed(seed % 2**63)
    width = _hidden_size(model)
    spread = getattr(model.config.get_text_config(), "initializer_range", None)
    weight = torch.randn(len(labels), width, generator=generator)
    weight *= _INITIALIZER_RANGE if spread is None else spread
    score = nn.Parameter(weight.to(device=model.device, dtype=_dtype_of_heads(model)))
    body = None if lora is None else create_lora(model, lora, seed=seed, limits=limits)
    return ClassificationHead(labels=labels, score=score, body=body)


def read_head(
    content: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    model: PreTrainedModel,
    *,
    labels: Sequence[str] | None = None,
    limits: LoraLimits | None = None,
) -> ClassificationHead:
    """A head as PEFT saved it.

    Args:
        content: ``adapter_config.json``, parsed.
        state: ``adapter_model.safetensors``.
        model: The base model's network; not changed.
        labels: Name of each class; None gives transformers' ``LABEL_0`` and so on.
        limits: Caps of the LoRA; the class's defaults if None.

    Returns:
        A head that gives the scores of PEFT on transformers' sequence classifier.

    Raises:
        ArtifactError: If config or tensors are not exactly those of a head for this model.
        NotSupportedError: If it needs what is not offered.
    """
    _require_causal(model)
    _require_plain_scores(model)
    weight, body_content, body_state = split_head(content, state)
    if weight.shape[1] != _hidden_size(model):
        raise ArtifactError(
            f"the head reads {weight.shape[1]} numbers, the base model's hidden states have "
            f"{_hidden_size(model)}"
        )
    if labels is None:
        labels = [f"LABEL_{number}" for number in range(len(weight))]
    if len(labels) != len(weight):
        raise ArtifactError(f"the head has {len(weight)} classes and {len(labels)} labels")
    score = nn.Parameter(
        weight.detach().to(device=model.device, dtype=_dtype_of_heads(model), copy=True)
    )
    body = None
    if body_content is not None:
        body = read_lora(body_content, body_state, model, limits=limits)
    return ClassificationHead(labels=labels, score=score, body=body)


def _require_causal(model: PreTrainedModel) -> None:
    if model.config.is_encoder_decoder:
        raise NotSupportedError(
            "classification heads stand on causal base models; a model of type "
            f"{model.config.model_type!r} has an encoder and a decoder"
        )


def _dtype_of_heads(model: PreTrainedModel) -> torch.dtype:
    """What heads are learned in: fp32 beside half precision, as in PEFT."""
    return torch.promote_types(torch.float32, model.dtype)


def _hidden_size(model: PreTrainedModel) -> int:
    """Width of what the output layer reads."""
    layer = model.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise NotSupportedError(
            f"a base model of type {model.config.model_type!r} has no output layer that a head "
            "could replace"
        )
    return int(layer.weight.shape[1])


@torch.no_grad()
def _require_plain_scores(model: PreTrainedModel) -> None:
    """Try on two tokens that scores are head times hidden state, as transformers' classifiers'.

    With scores so large that a soft cap shows.
    """
    drawn = torch.randn(2, _hidden_size(model), generator=torch.Generator().manual_seed(0))
    weight = (100 * drawn).to(device=model.device, dtype=_dtype_of_heads(model))
    probe = ClassificationHead(labels=("a", "b"), score=nn.Parameter(weight))
    tree = probe.tuned_model(model)
    tokens = torch.tensor([[1, 2]], device=model.device)
    got = tree(input_ids=tokens, use_cache=False).logits.to(weight.dtype)
    body = tree.base_model
    hidden = None if body is tree else body(input_ids=tokens, use_cache=False).last_hidden_state
    if hidden is not None:
        expected = hidden.to(weight.dtype) @ weight.T
        if torch.allclose(expected, got, rtol=1e-3, atol=float(1e-3 * expected.abs().max())):
            return
    raise NotSupportedError(
        f"a base model of type {model.config.model_type!r} does more to its logits than its "
        "output layer, which a classification head does not know"
    )
