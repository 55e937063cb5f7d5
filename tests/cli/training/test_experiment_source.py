from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.cli.training.experiment_source import is_experiment, read_experiment
from luthier.errors import UnknownKeyError

OURS = "general: {method: lora, model_name: m}\ntraining: {num_epochs: 2}\n"
H2O = (
    "llm_backbone: b\nproblem_type: text_causal_language_modeling\n"
    "dataset: {train_dataframe: rows.csv, parent_id_column: None, system_column: None}\n"
    "training: {epochs: 2}\n"
)
FLAT = "model_name: m\ntrain_data: rows.csv\ntuning_config: {num_virtual_tokens: 4}\nlr: 0.1\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "cfg.yaml"
    file.write_text(text)
    return file


def test_kinds_of_files_are_told_apart() -> None:
    assert is_experiment({"general": {}, "training": {}})
    assert is_experiment({"llm_backbone": "b"})
    assert not is_experiment({"model_name": "m", "tuning_config": {"num_virtual_tokens": 4}})


def test_a_file_in_groups_is_read_and_laid_over(tmp_path: Path) -> None:
    file = write(tmp_path, OURS)
    source = read_experiment(file, None, {"num_epochs": 5, "environment.seed": 3, "lora.rank": 2})
    assert source.imported is None
    assert source.options.training.num_epochs == 5
    assert source.options.training.seed == 3
    assert source.options.lora.rank == 2


def test_a_flat_file_is_read_as_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("input,output\n")
    options = read_experiment(write(tmp_path, FLAT), None, {}).options
    assert options.training.learning_rate == 0.1
    assert options.tuning_config.num_virtual_tokens == 4
    assert options.dataset.train_dataframe == str(tmp_path / "rows.csv")
    assert options.dataset.validation_size == 0


def test_validation_data_of_a_flat_run_is_what_is_held_out() -> None:
    options = read_experiment(None, None, {"validation_data": "v.csv", "method": "lora"}).options
    assert options.dataset.validation_strategy == "custom"
    assert options.dataset.validation_dataframe == "v.csv"
    assert options.training.num_epochs == 3


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("general: {method: head}\nhead: {labels: [a, b]}\n", {}),
        ("method: head\nlabels: [a, b]\n", {}),
        ("general: {method: lora}\n", {"method": "head", "labels": ["a", "b"]}),
    ],
)
def test_a_head_is_read_from_either_kind_of_file(
    text: str, given: dict[str, Any], tmp_path: Path
) -> None:
    options = read_experiment(write(tmp_path, text), None, given).options
    assert (options.general.method, options.head.labels) == ("head", ("a", "b"))
    assert options.training.metrics[0] == "loss"


def test_another_method_keeps_what_was_said_and_has_its_own_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "general: {method: lora}\ntraining: {batch_size: 3}\n")
    options = read_experiment(file, None, {"method": "prompt_tuning"}).options
    assert options.training.batch_size == 3
    assert options.training.num_epochs == 20


def test_an_h2o_file_is_read_and_may_be_answered(tmp_path: Path) -> None:
    file = write(tmp_path, H2O)
    assert read_experiment(file, None, {}).options.training.quantization == "nf4"
    for answer in ({"torch_dtype": "float32"}, {"architecture.backbone_dtype": "float32"}):
        source = read_experiment(file, None, answer)
        assert source.options.training.torch_dtype == "float32"
        assert source.options.training.num_epochs == 2
    over = {"torch_dtype": "float32", "training.epochs": 4, "training.schedule": "Linear"}
    assert read_experiment(file, None, over).options.training.schedule == "linear"


def test_a_preset_is_laid_under_the_command_line() -> None:
    given = {"torch_dtype": "float32", "train_data": "d", "batch_size": 7}
    options = read_experiment(None, "healthcare_qa", given).options
    assert options.general.base_model == "mistralai/Mistral-7B-v0.3"
    assert options.training.learning_rate == 5e-5
    assert options.training.batch_size == 7
    assert options.dataset.train_dataframe == "d"


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match="'num_epoch', did you mean 'num_epochs'"):
        read_experiment(None, None, {"num_epoch": 1})
