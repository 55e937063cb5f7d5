"""A short mark of a base model's weights, so that a prompt is not put before another base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from luthier.data_model.options.quantisation import NONE
from luthier.errors import ArtifactError
from luthier.resources.base_model import BaseModel

#: Numbers taken from the start of each parameter: every layer counts, and it costs no time.
_NUMBERS_PER_PARAMETER = 16


def fingerprint(base_model: BaseModel) -> str:
    """Precision and hash of a few numbers of every parameter.

    Args:
        base_model: Any.

    Returns:
        ``float32:``, ``float32+nf4:`` or the like, and hex digits.
    """
    digest = hashlib.sha256()
    for name, parameter in base_model.model.named_parameters():
        numbers = parameter.detach().flatten()[:_NUMBERS_PER_PARAMETER].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    held = str(base_model.dtype).removeprefix("torch.")
    if base_model.quantization != NONE:
        held += f"+{base_model.quantization}"
    return f"{held}:{digest.hexdigest()[:32]}"


def require_same_base(config: Mapping[str, Any], base_model: BaseModel) -> None:
    """Refuse a base model that has the right name and other weights.

    Weights in another precision cannot be compared, and pass.

    Args:
        config: Of the saved prompt.
        base_model: Found under the name in it.

    Raises:
        ArtifactError: If the marks differ.
    """
    expected = config.get("base_model_fingerprint")
    if not isinstance(expected, str):
        return
    found = fingerprint(base_model)
    if expected.partition(":")[0] == found.partition(":")[0] and expected != found:
        raise ArtifactError(
            f"base model {base_model.name!r} is not the one that the prompt was tuned for: its "
            "weights differ"
        )
