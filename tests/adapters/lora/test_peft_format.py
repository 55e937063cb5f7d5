from __future__ import annotations

import dataclasses

import peft
import pytest
import torch

from luthier.adapters.lora.peft_format import check_state, read_config, write_config
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError


def _written(config: LoraConfig, *, is_stacked: bool = False) -> dict[str, object]:
    return write_config(
        config,
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        modules_to_save=config.modules_to_save,
        is_transposed=False,
        is_stacked=is_stacked,
    )


FULL = LoraConfig(
    rank=4,
    alpha=6,
    dropout=0.25,
    use_rslora=True,
    use_dora=True,
    target_modules=("q_proj",),
    exclude_modules=r".*\.0\..*",
    layers_to_transform=(1, 2),
    layers_pattern=("layers",),
    rank_pattern={"a": 2},
    alpha_pattern={"b": 2.5},
    modules_to_save=("lm_head",),
)


def test_peft_reads_every_key_that_is_written_as_it_was_meant() -> None:
    theirs = peft.LoraConfig(**_written(FULL))  # type: ignore[arg-type]
    assert (theirs.r, theirs.lora_alpha, theirs.lora_dropout) == (4, 6, 0.25)
    assert (theirs.use_rslora, theirs.use_dora, theirs.bias) == (True, True, "none")
    assert (theirs.target_modules, theirs.exclude_modules) == ({"q_proj"}, r".*\.0\..*")
    assert (theirs.layers_to_transform, theirs.layers_pattern) == ([1, 2], ["layers"])
    assert (theirs.rank_pattern, theirs.alpha_pattern) == ({"a": 2}, {"b": 2.5})
    assert theirs.modules_to_save == ["lm_head"]


def test_what_is_written_is_read_back() -> None:
    assert read_config(_written(FULL), task_type="CAUSAL_LM") == FULL


def test_scaling_survives_the_doubled_rank() -> None:
    for use_rslora in (False, True):
        config = dataclasses.replace(FULL, use_rslora=use_rslora)
        stacked = read_config(_written(config, is_stacked=True), task_type="CAUSAL_LM")
        assert (stacked.rank, stacked.rank_pattern) == (8, {"a": 4})
        assert stacked.scaling(8, stacked.alpha) == pytest.approx(config.scaling(4, 6), rel=1e-12)
        assert stacked.scaling(8, stacked.alpha_pattern["b"]) == pytest.approx(
            config.scaling(4, 2.5), rel=1e-12
        )


def test_a_config_of_every_default_of_peft_is_read() -> None:
    theirs = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q"]).to_dict()
    theirs["target_modules"] = list(theirs["target_modules"])
    config = read_config({**theirs, "peft_type": "LORA"}, task_type="CAUSAL_LM")
    assert (config.rank, config.alpha, config.target_modules) == (8, 8, ("q",))
    few = {"peft_type": "LORA", "target_modules": ["q"]}
    assert read_config(few, task_type="SEQ_2_SEQ_LM") == config


def test_a_tensor_under_two_names_is_refused() -> None:
    state = {"a.lora_A.weight": torch.ones(1, 1), "base_model.model.a.lora_A.weight": torch.ones(1)}
    with pytest.raises(ArtifactError, match="twice"):
        check_state(state, {"a.lora_A.weight": (1, 1)})
