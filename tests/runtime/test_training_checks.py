"""The module is asked with what the request set, as a stranger's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.config import load_config
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import (
    BaseModelNotFoundError,
    InvalidInputError,
    NameNotAllowedError,
    NotSupportedError,
    TrainingDataError,
    VerbalizerError,
)
from luthier.modules import PeftPromptTuning, TextGeneration, configure
from luthier.runtime.training_checks import check_training

RECORDS = [GenerationTrainRecord("a", "b"), GenerationTrainRecord("c", "d")]


@pytest.fixture(autouse=True)
def base_models(tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    configure(load_config({"BASE_MODELS_DIR": str(tmp_path)}))
    yield
    configure(load_config({}))


def check(records=RECORDS, validation=(), **parameters) -> None:
    given = {"base_model": "tiny", "tuning_config": {"num_virtual_tokens": 4}, **parameters}
    check_training(PeftPromptTuning.MODULE_ID, given, list(records), list(validation))


def test_a_training_that_can_be_done_passes():
    check()
    check(validation=RECORDS[:1], num_epochs=1, learning_rate=0.1)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"base_model": "nope"}, BaseModelNotFoundError, "ALLOW_DOWNLOADS"),
        ({"verbalizer": "none"}, VerbalizerError, "placeholder"),
        ({"tuning_type": "LORA"}, NotSupportedError, "LORA"),
        ({"num_epochs": -1}, InvalidInputError, "num_epochs"),
        ({"num_epochs": 10**9}, InvalidInputError, "num_epochs"),
        ({"tuning_config": {"num_virtual_tokens": 10**9}}, InvalidInputError, "num_virtual_tokens"),
        ({"validation": [GenerationTrainRecord("a", "")]}, TrainingDataError, "row 1"),
    ],
)
def test_one_that_cannot_is_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        check(**parameters)


def test_an_unknown_module_is_refused():
    with pytest.raises(InvalidInputError, match="'nobody'"):
        check_training("nobody", {}, RECORDS, [])


@pytest.mark.parametrize("name", ["../other/weights.pth", "/etc/passwd", "link.safetensors"])
def test_weights_that_are_not_the_operators_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    given = {"base_model": "tiny", "training_options": {"pretrained_weights": name}}
    with pytest.raises(NameNotAllowedError, match="pretrained_weights"):
        check_training(TextGeneration.MODULE_ID, given, RECORDS, [])


def test_settings_of_the_data_come_as_json() -> None:
    settings = {"personalize": True, "validation_size": 0.5, "split_seed": 3}
    check(training_options=settings)
    with pytest.raises(InvalidInputError, match=r"'validation_size' must be at most 0\.95"):
        check(training_options=settings | {"validation_size": 1.5})
