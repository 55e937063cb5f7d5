"""A row that ends once its prompt was read: the scores that a classification head gives it."""

from __future__ import annotations

import torch

from luthier.errors import EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import (
    ClassificationRequest,
    FinishReason,
    GenerationChunk,
)
from luthier.inference.prompts import Prompt
from luthier.inference.sequences import RowSequence
from luthier.resources.base_model import BaseModel


class ScoredSequence(RowSequence):
    """The answer to one classification, made of one hidden state.

    Args:
        request: What was asked; its head was checked.
        prompt: Its prompt, checked against the model's context.
    """

    is_scored = True

    def __init__(self, request: ClassificationRequest, *, prompt: Prompt) -> None:
        super().__init__(request, prompt=prompt)
        self._head = request.head

    def score(self, hidden: torch.Tensor) -> GenerationChunk:
        """Say what the head makes of the last token.

        Args:
            hidden: What the model's output layer would read, [D].

        Returns:
            The only chunk.

        Raises:
            EngineError: If a score is not finite.
        """
        # The head is small: in full precision it costs nothing, on the CPU it waits for no device.
        dtype = torch.promote_types(torch.float32, hidden.dtype)
        scores = self._head.to(dtype) @ hidden.to("cpu", dtype)
        if not bool(torch.isfinite(scores).all()):
            raise EngineError(
                f"the classification gave {int((~torch.isfinite(scores)).sum())} of "
                f"{len(scores)} scores that are not finite; the adapter or its head may be broken"
            )
        return self._last_chunk(FinishReason.MAX_TOKENS, scores=tuple(scores.tolist()))


def require_head_fits(base_model: BaseModel, head: torch.Tensor) -> None:
    """Refuse a head that cannot stand on a base model.

    Args:
        base_model: The frozen base.
        head: Of a request.

    Raises:
        NotSupportedError: If the base model is not causal.
        InvalidInputError: If the head has another width, or no numbers to multiply by.
    """
    if base_model.kind != "causal":
        raise NotSupportedError(
            f"classification heads stand on causal base models, and {base_model.name!r} is "
            f"{base_model.kind}"
        )
    width = base_model.hidden_size
    if head.ndim != 2 or not len(head) or head.shape[1] != width or not head.is_floating_point():
        raise InvalidInputError(
            f"the classification head must be [classes, {width}] floating point numbers for base "
            f"model {base_model.name!r}, got {list(head.shape)} of {head.dtype}"
        )
