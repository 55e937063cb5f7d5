"""Full fine-tuning: not a delta but an own copy of the whole base model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import alog
import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import NO_TOKENS, AddedTokens, grow_embeddings
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.checksums import versions_of
from luthier.errors import ArtifactError, NotSupportedError

log = alog.use_channel(__name__)


class FullWeights(Adapter):
    """Every weight of a base model, copied, so that the shared one stays as it is.

    After training, ``model`` is a whole model of its own: save it as one
    (``resources.model_loading.save_base_model``), not as an adapter.

    Args:
        model: The base model's network. Copied: costs its memory once more, and as much again
            for gradients and twice for AdamW while it is tuned.

        is_shared_out: Whether the processes of a training will share its weights out. Then nothing
            is copied: each process copies its share, and the whole comes back to the main one.

    Raises:
        NotSupportedError: If its weights are quantised.
    """

    method: ClassVar[str] = "full_fine_tuning"

    def __init__(self, model: PreTrainedModel, *, is_shared_out: bool = False) -> None:
        if any(hasattr(layer, "dequantised_weight") for layer in model.modules()):
            raise NotSupportedError(
                "the weights of a quantised base model cannot be fine-tuned; tune a LoRA or a "
                "prompt, or set quantization to none"
            )
        self.is_shared_out = is_shared_out
        self._added: Mapping[str, int] = NO_TOKENS
        memo = {}
        if is_shared_out:
            memo = {id(tensor): nn.Parameter(tensor.detach()) for tensor in model.parameters()}
        self.model: PreTrainedModel = copy.deepcopy(model, memo)
        self.model.requires_grad_(True)

    def add_tokens(self, added: AddedTokens) -> None:
        """Enlarge the vocabulary before it is learned; the model may write the tokens, too.

        Args:
            added: The tokens; each starts as the mean of its pieces, in every table of tokens.

        Raises:
            NotSupportedError: If processes share the weights out, or the embeddings are no table.
        """
        if self.is_shared_out:
            raise NotSupportedError(
                "'add_prompt_answer_tokens' enlarges embeddings, and 'use_fsdp' shares them out as "
                "they are; add the tokens in a training without it, and go on from its model"
            )
        grow_embeddings(self.model, added)
        self.model.requires_grad_(True)
        self._added = dict(added.ids)

    def added_tokens(self) -> Mapping[str, int]:
        """Those of ``add_tokens``."""
        return self._added

    def load(self, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
        """Take other numbers, by the model's own names.

        Args:
            weights: Of all layers or of some; the others stay as they are, which is logged.
            source: For messages.

        Raises:
            ArtifactError: If a name or a shape is not the model's; then nothing is changed.
        """
        own = self.model.state_dict()
        unknown = sorted(weights.keys() - own.keys())
        if unknown:
            raise ArtifactError(
                f"{source!r} holds {len(unknown)} tensors that the base model does not have, such "
                f"as {unknown[0][:120]!r}"
            )
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                raise ArtifactError(
                    f"{source!r}: {name[:120]!r} has shape {list(tensor.shape)}, in the base model "
                    f"{list(own[name].shape)}"
                )
        # A tied weight has several names; a file needs one of them.
        given = {own[name].data_ptr() for name in weights}
        kept = [name for name, tensor in own.items() if tensor.data_ptr() not in given]
        self.model.load_state_dict(dict(weights), strict=False)
        if kept:
            log.warning(
                "%d tensors are not in %s and stay the base model's, such as %s",
                len(kept),
                source,
                kept[0],
            )

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
        moved._added = self._added
        moved.model.to(device=device, dtype=dtype)
        return moved
