"""From the numbers that a layer starts with to the tensors that are learned."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.lora.initialisation import StartingFactors
from luthier.adapters.lora.layers import oriented_weight
from luthier.adapters.lora_factors import LoraFactors


def fresh_factors(
    start: StartingFactors,
    layer: nn.Module,
    *,
    scaling: float,
    use_dora: bool,
    dtype: torch.dtype,
) -> LoraFactors:
    """Factors beside a layer, on its device, before their first update.

    Args:
        start: Their numbers.
        layer: Of the base model; only DoRA reads its weight.
        scaling: Of the delta.
        use_dora: Whether a length per output is learned; it starts as that of weight and delta.
        dtype: Of the factors.

    Returns:
        Tensors of their own.

    Raises:
        NotSupportedError: If DoRA needs a weight whose numbers are not to be had.
    """
    device: torch.device = layer.weight.device  # type: ignore[assignment]

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        # A resumed training must add up as it did before: what comes from a file may stand at odd
        # places, what comes from a decomposition has odd strides where a size is 1.
        return torch.empty(tensor.shape, device=device, dtype=dtype).copy_(tensor)

    lora_a, lora_b = placed(start.lora_a), placed(start.lora_b)
    factors = LoraFactors(
        lora_a=nn.Parameter(lora_a),
        lora_b=nn.Parameter(lora_b, requires_grad=start.trains_b),
        scaling=scaling,
        start_a=lora_a.clone() if start.is_subtracted else None,
        start_b=lora_b.clone() if start.is_subtracted else None,
        trains_b=start.trains_b,
    )
    if not use_dora:
        return factors
    weight = oriented_weight(layer).to(dtype)
    lora_a, lora_b = (tensor.detach() for tensor in factors.stacked())
    lengths = torch.linalg.norm(weight + scaling * lora_b @ lora_a, dim=1)
    return dataclasses.replace(factors, magnitude=nn.Parameter(lengths))


def factor_dtype(model: PreTrainedModel) -> torch.dtype:
    """What deltas for this model are learned in: fp32 beside half precision, as in PEFT."""
    dtype: torch.dtype = model.dtype
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
