from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import constants

from luthier.adapters.heads.peft_format import NO_LAYERS, split_head, write_config
from luthier.errors import ArtifactError, NotSupportedError

HEAD = {"base_model.model.score.weight": torch.ones(2, 4)}
BODY = {"base_model.model.layer.lora_A.weight": torch.ones(1, 4)}


def test_a_head_alone_is_pefts_lora_of_no_layers() -> None:
    assert NO_LAYERS == constants.DUMMY_TARGET_MODULES
    config = write_config(None)
    assert LoraConfig(**config).to_dict().items() >= config.items()


def test_a_head_is_saved_beside_what_the_lora_saves() -> None:
    body = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "modules_to_save": ["norm"], "r": 3}
    assert write_config(body) == {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": ["score", "norm"], "r": 3,
    }  # fmt: skip


def test_a_head_is_taken_apart_from_its_lora() -> None:
    content = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "target_modules": ["layer"],
        "modules_to_save": ["classifier", "score"],
    }  # fmt: skip
    weight, body, state = split_head(content, {**HEAD, **BODY})
    assert weight is HEAD["base_model.model.score.weight"]
    assert body is not None
    assert (body["modules_to_save"], body["task_type"]) == (None, None)
    assert list(state) == ["layer.lora_A.weight"]


def test_tensors_beside_a_head_that_is_alone_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"layer\.lora_A"):
        split_head(write_config(None), {**HEAD, **BODY})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, NotSupportedError, "PROMPT_TUNING"),
        ({"modules_to_save": 3}, ArtifactError, "list of names"),
    ],
)
def test_what_is_no_head_of_ours_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    content = {"peft_type": "LORA", "task_type": "SEQ_CLS", "target_modules": ["layer"], **change}
    with pytest.raises(error, match=message):
        split_head(content, {**HEAD, **BODY})


@pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(0, 4)])
def test_a_head_of_another_shape_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match="classes, hidden size"):
        split_head(write_config(None), {"base_model.model.score.weight": weight})
