"""What makes two trainings different ones."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.run_fingerprint import RunFingerprint, fingerprint_run
from luthier.training.data.examples import Example, TrainingData, TruncationReport

OPTIONS = TrainingOptions()
DATA = TrainingData(
    (Example(1, (1, 2), (-100, 2)), Example(2, (1, 2, 3), (-100, 2, 3))), TruncationReport()
)


def _fingerprint(base: BaseModel, **changes: Any) -> RunFingerprint:
    adapter: Adapter = changes.get("adapter") or create_lora(base.model, LoraConfig(rank=2), seed=0)
    return fingerprint_run(
        base,
        adapter,
        changes.get("data", DATA),
        changes.get("validation"),
        changes.get("options", OPTIONS),
    )


def test_the_same_training_has_no_differences(tiny_causal_base: BaseModel) -> None:
    changes = {"options": dataclasses.replace(OPTIONS, silence_progress_bars=False, device="cpu")}
    now = _fingerprint(tiny_causal_base, **changes)
    assert _fingerprint(tiny_causal_base).differences(now) == []


@pytest.mark.parametrize(
    "example", [Example(1, (1, 5), (-100, 2)), Example(1, (1, 2), (1, 2)), Example(1, (), (1, 2))]
)
def test_every_token_and_label_counts(example: Example, tiny_causal_base: BaseModel) -> None:
    data = TrainingData((example, DATA.examples[1]), TruncationReport())
    differences = _fingerprint(tiny_causal_base).differences(
        _fingerprint(tiny_causal_base, data=data)
    )
    assert differences == ["the training data differs in 1 rows, the first is row 1"]


def test_one_changed_layer_of_the_base_counts(tiny_causal_base: BaseModel) -> None:
    model = copy.deepcopy(tiny_causal_base.model)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(1.001)
    other = BaseModel.from_memory(model, tiny_causal_base.tokenizer, name="other")
    differences = _fingerprint(tiny_causal_base).differences(_fingerprint(other))
    assert differences == ["the base model has other weights"]


def test_settings_of_the_adapter_are_named(tiny_causal_base: BaseModel) -> None:
    other = create_lora(tiny_causal_base.model, LoraConfig(rank=2, alpha=64), seed=0)
    (difference,) = _fingerprint(tiny_causal_base).differences(
        _fingerprint(tiny_causal_base, adapter=other)
    )
    assert difference.startswith("'lora_alpha' was ")
