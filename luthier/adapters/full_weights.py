"""Full fine-tuning: not a delta but an own copy of the whole base model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.lora.layers import versions_of
from luthier.errors import NotSupportedError


class FullWeights(Adapter):
    """Every weight of a base model, copied, so that the shared one stays as it is.

    After training, ``model`` is a whole model of its own: save it as one
    (``resources.model_loading.save_base_model``), not as an adapter.

    Args:
        model: The base model's network. Copied: costs its memory once more, and as much again
            for gradients and twice for AdamW while it is tuned.

    Raises:
        NotSupportedError: If its weights are quantised.
    """

    method: ClassVar[str] = "full_fine_tuning"

    def __init__(self, model: PreTrainedModel) -> None:
        if any(hasattr(layer, "dequantised_weight") for layer in model.modules()):
            raise NotSupportedError(
                "the weights of a quantised base model cannot be fine-tuned; tune a LoRA or a "
                "prompt, or set quantization to none"
            )
        self.model: PreTrainedModel = copy.deepcopy(model)
        self.model.requires_grad_(True)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight; tied ones once."""
        yield from self.model.named_parameters()

    def soft_prompt(self) -> SoftPromptTensors:
        """None: the input stays as it is."""
        return SoftPromptTensors()

    def tuned_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The own copy, whatever ``model`` is."""
        return self.model

    def snapshot(self) -> Self:
        """Itself: a copy of a whole model for each request costs more than it is worth."""
        return self

    def changes(self) -> object:
        """How often tensors were changed in place; what is done through ``.data`` is not seen."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return versions_of(*tensors) or ()

    def peft_config(self) -> dict[str, Any]:
        """Not a PEFT adapter.

        Returns:
            Nothing.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError("full fine-tuning gives a whole model, not a PEFT adapter")

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """Not a PEFT adapter.

        Returns:
            Nothing.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError("full fine-tuning gives a whole model, not a PEFT adapter")

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""
        if self.model.device == device and self.model.dtype == dtype:
            return self
        moved = type(self)(self.model)
        moved.model.to(device=device, dtype=dtype)
        return moved
