from __future__ import annotations

from typing import Any

import pytest

from luthier.data_model.other_systems.foreign_setting import Refusal
from luthier.data_model.other_systems.h2o import conversions

VALUES: dict[str, Any] = {
    "training.lora": True,
    "training.grad_accumulation": 2,
    "environment.gpus": ["0", "1", "2"],
    "training.save_checkpoint": "last",
    "dataset.mask_prompt_labels": False,
    "dataset.parent_id_column": "None",
    "dataset.validation_strategy": "automatic",
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("or_none", "None", None),
        ("or_none", "column", "column"),
        ("decoded_text", "a\\n\\tb", "a\n\tb"),
        ("columns", "None", []),
        ("columns", "text", ["text"]),
        ("names", "", None),
        ("names", " q , v,", ["q", "v"]),
        ("method", False, "full_fine_tuning"),
        ("validation_file", "v.csv", ""),
        ("id_column", "id", None),
        ("only_last", True, False),
        ("batches_per_update", [], 6),
        ("loss", "TokenAveragedCrossEntropy", "token_average"),
        ("dtype", "float16", "float16"),
        ("quantile", 0.5, 0.5),
        ("save_word", "disable", "never"),
        ("metric", "Perplexity", ["loss", "row_perplexity"]),
        ("tracker", "W&B", ["wandb"]),
        ("tracker", "None", []),
        ("tracker_project", "mine", "mine"),
        ("dtype", "bfloat16", "bfloat16"),
        ("quantization", "int4", "nf4"),
        ("quantization", "int8", "int8"),
    ],
)
def test_a_value_becomes_ours(name: str, value: Any, expected: Any) -> None:
    assert getattr(conversions, name)(value, VALUES) == expected


@pytest.mark.parametrize(("name", "value"), [("loss", "DPOLoss"), ("metric", "Grit")])
def test_what_cannot_be_expressed_says_why(name: str, value: Any) -> None:
    refusal = getattr(conversions, name)(value, VALUES)
    assert isinstance(refusal, Refusal)
    assert value in refusal.reason
