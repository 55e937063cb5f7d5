"""A classification head in PEFT's words: a LoRA of task type SEQ_CLS that saves ``score`` whole.

transformers' sequence classifiers over causal models all call their head ``score`` and give it no
bias. A head without a LoRA is a LoRA of no layers: PEFT has a word for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from luthier.adapters.lora.peft_format import PEFT_TYPE, TENSOR_PREFIX
from luthier.errors import ArtifactError, NotSupportedError

TASK_TYPE = "SEQ_CLS"
HEAD_NAME = "score"
#: Names under which PEFT saves heads, whatever the model calls its own.
_HEAD_NAMES = frozenset({"classifier", HEAD_NAME})
#: What PEFT takes for "only ``modules_to_save``" (``peft.utils.constants``).
NO_LAYERS = "dummy-target-modules"


def write_config(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """``adapter_config.json``.

    Args:
        body: That of the LoRA below the head, or None.

    Returns:
        JSON values; what is not there has PEFT's default.
    """
    if body is None:
        return {
            "base_model_name_or_path": None,
            "bias": "none",
            "inference_mode": True,
            "modules_to_save": [HEAD_NAME],
            "peft_type": PEFT_TYPE,
            "target_modules": NO_LAYERS,
            "task_type": TASK_TYPE,
        }
    saved = [HEAD_NAME, *(body.get("modules_to_save") or ())]
    return {**body, "modules_to_save": saved, "task_type": TASK_TYPE}


def split_head(
    content: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, Any] | None, dict[str, torch.Tensor]]:
    """Take the head out of what PEFT saved.

    Args:
        content: ``adapter_config.json``, parsed.
        state: ``adapter_model.safetensors``.

    Returns:
        The head's weight, [N, D], and config and tensors of the LoRA below it; the config is None
        if there is none.

    Raises:
        ArtifactError: If there is no head, or something that belongs to no layer.
        NotSupportedError: If the head is more than a weight.
    """
    if content.get("peft_type") != PEFT_TYPE:
        raise NotSupportedError(
            f"a classifier of type {str(content.get('peft_type'))[:80]!r} is not offered; heads "
            f"come alone or with {PEFT_TYPE}"
        )
    found: dict[str, torch.Tensor] = {}
    rest: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        short = name.removeprefix(TENSOR_PREFIX)
        (found if short.split(".")[0] in _HEAD_NAMES else rest)[short] = tensor
    weight = found.pop(f"{HEAD_NAME}.weight", None)
    if found:
        raise NotSupportedError(
            f"the adapter's head holds {sorted(found)[0][:120]!r}; heads of causal models are one "
            f"weight, {HEAD_NAME}.weight, without bias"
        )
    if weight is None or weight.ndim != 2 or not len(weight):
        shape = None if weight is None else list(weight.shape)
        raise ArtifactError(f"{HEAD_NAME}.weight must be [classes, hidden size], got {shape}")
    if content.get("target_modules") == NO_LAYERS:
        if rest:
            raise ArtifactError(f"the adapter targets no layer and holds {sorted(rest)[0][:120]!r}")
        return weight, None, rest
    saved = content.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise ArtifactError("'modules_to_save' must be a list of names")
    kept = [name for name in saved if name not in _HEAD_NAMES]
    return weight, {**content, "modules_to_save": kept or None, "task_type": None}, rest
