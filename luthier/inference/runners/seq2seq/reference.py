"""What a seq2seq model itself gives, by its own code, for packed rows to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.adapters.base import SoftPromptTensors
from luthier.errors import NotSupportedError
from luthier.inference.memory.kv_cache import KvShape
from luthier.inference.prompts import Prompt
from luthier.inference.runners.row_forward import Seq2SeqRowForward
from luthier.resources.base_model import BaseModel


def logits_of(base_model: BaseModel, read: Sequence[int], written: Sequence[int]) -> torch.Tensor:
    """The model's logits, token by token as it generates them.

    Args:
        base_model: A seq2seq one.
        read: Ids that its encoder reads.
        written: Ids that its decoder writes, [T]; the first is the one it starts from.

    Returns:
        After each of them, [T, V].
    """
    forward = Seq2SeqRowForward(base_model)
    first = forward.prefill(_prompt_of(read), wants_prompt_logits=False)
    return torch.stack([first[-1], *(forward.step(token_id) for token_id in written[1:])])


def shape_of(base_model: BaseModel) -> KvShape:
    """What a token takes, of the decoder's own and of the encoder's alike.

    Args:
        base_model: A seq2seq one.

    Returns:
        The same for all its decoder layers.

    Raises:
        NotSupportedError: If they differ, or keep other things than keys and values.
    """
    forward = Seq2SeqRowForward(base_model)
    forward.prefill(_prompt_of([0]), wants_prompt_logits=False)
    halves = [getattr(forward.cache, f"{name}_attention_cache", None) for name in ("self", "cross")]
    shapes = {
        tuple(tensor.shape)
        for half in halves
        for layer in getattr(half, "layers", [None])
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    }
    if None in halves or len(shapes) != 1:
        raise NotSupportedError(
            f"the decoder layers of base model {base_model.name!r} differ in what they keep"
        )
    ((_, num_heads, _, head_dim),) = shapes
    return KvShape(len(forward.cache.self_attention_cache.layers), num_heads, head_dim)


def _prompt_of(token_ids: Sequence[int]) -> Prompt:
    return Prompt(tuple(token_ids), None, SoftPromptTensors(), None)
