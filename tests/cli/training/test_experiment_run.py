from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.h2o_default import H2O_DEFAULT

from luthier.cli.training.experiment_run import dry_run_lines
from luthier.config.yaml_text import parse_yaml
from luthier.data_model.experiment_file import experiment_from_yaml

#: An experiment as H2O LLM Studio writes it, with a small model and data put in.
H2O = """
architecture: {{backbone_dtype: float32, gradient_checkpointing: false, pretrained: true}}
dataset:
    answer_column: output
    data_sample: 1.0
    parent_id_column: None
    personalize: false
    prompt_column: [instruction]
    system_column: None
    train_dataframe: {data}
    validation_dataframe: None
    validation_size: 0.2
    validation_strategy: automatic
environment: {{gpus: ['0', '1'], mixed_precision: true, seed: 5, use_fsdp: false}}
experiment_name: small
llm_backbone: tiny-causal
output_directory: /output/...
prediction: {{metric: Perplexity, num_beams: 1}}
problem_type: text_causal_language_modeling
tokenizer: {{max_length: 64, padding_quantile: 1.0}}
training: {{batch_size: 2, epochs: 2, lora: true, lora_r: 2, schedule: Cosine}}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.csv"
    rows = "".join(f"what is {number}?,it is {number}\n" for number in range(10))
    file.write_text("instruction,output\n" + rows)
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_experiment_of_h2o_runs_with_a_small_model_and_data_put_in(
    run, here, tiny_base_models_dir
) -> None:
    rows = [{"instruction": f"what is {n}?", "output": f"it is {n}"} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), here / "train_full.pq")
    text = H2O_DEFAULT.replace("/data/user/oasst/train_full.pq", str(here / "train_full.pq"))
    (here / "cfg.yaml").write_text(text.replace("h2oai/h2ogpt-4096-llama2-7b", "tiny-causal"))
    result = run("train", "-Y", "cfg.yaml", "--base-models-dir", tiny_base_models_dir)
    assert result.code == 0, result.err
    assert " 0 refused" in result.err
    assert "architecture.quantization = 'nf4'" in result.err
    # 1 % is held out; two rows a GPU and eight GPUs make an update.
    assert "198 rows, 13 updates" in result.err
    config = parse_yaml((here / "models" / "default-8-a10g" / "config.yml").read_text())
    assert config["training"]["options"]["quantization"] == "nf4"
    assert config["base_model_fingerprint"].startswith("float32+nf4:")


def test_an_h2o_experiment_is_reported_and_trained(run, data, here, tiny_base_models_dir) -> None:
    (here / "cfg.yaml").write_text(H2O.format(data=data))
    result = run("train", "-Y", "cfg.yaml", "--base-models-dir", tiny_base_models_dir)
    assert result.code == 0, result.err
    assert result.out == "tuned small: models/small\n"
    assert "an experiment of H2O LLM Studio: " in result.err
    assert "mapped   training.lora_r = 2: lora.rank = 2" in result.err
    assert "ignored  prediction.num_beams = 1: replaced: num_beams: given with " in result.err
    assert "8 rows, 4 updates" in result.err
    assert "step 4/4  loss " in result.err
    saved = here / "models" / "small" / "adapter" / "adapter_config.json"
    assert json.loads(saved.read_text())["r"] == 2


def test_a_dry_run_shows_rows_batch_steps_and_time(run, data, here, tiny_base_models_dir) -> None:
    (here / "cfg.yml").write_text(
        "general: {method: lora, model_name: m, base_model: tiny-causal}\n"
        f"dataset: {{train_dataframe: {data}, prompt_column: [instruction], answer_column: output,"
        " prompt_format: markers}\n"
        "training: {batch_size: 3, num_epochs: 2}\n"
    )
    result = run("train", "-f", "cfg.yml", "--dry-run", "--base-models-dir", tiny_base_models_dir)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("train: 9 rows of ")
    assert lines[1] == "  truncation: all 9 rows fit"
    assert lines[2].startswith("validation: 1 rows of ")
    assert lines[4].startswith("updates: 6; learned numbers: ")
    assert lines[7].startswith("  1: <|prompt|>what is ")
    assert lines[7].endswith("</s>⟧")
    assert "<|answer|>⟦it is " in lines[7]
    assert lines[-2].startswith("time: ")
    assert lines[-1].startswith("memory: ")
    assert not (here / "models").exists()


def test_a_dry_run_writes_no_model_and_wants_no_name_for_one(
    run, data, here, tiny_base_models_dir
) -> None:
    asked = ["train", "--method", "lora", "--base-model", "tiny-causal", "--train-data", data]
    result = run(*asked, "--dry-run", "--base-models-dir", tiny_base_models_dir)
    assert result.code == 0, result.err
    assert result.out.startswith("train: 10 rows of ")


@pytest.mark.parametrize("option", ["--model-name", "--base-model", "--train-data"])
def test_what_is_missing_is_said_before_a_process_is_started(
    option: str, run, here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr("luthier.cli.training.experiment_run.run_in_child", started)
    given = {"--model-name": "m", "--base-model": "b", "--train-data": "rows.csv"}
    words = [word for name, value in given.items() if name != option for word in (name, value)]
    result = run("train", "--method", "lora", "--num-processes", "2", *words)
    assert result.code == 2
    assert " is missing" in result.err


def test_an_experiment_is_exported_in_our_words(run, data, here) -> None:
    (here / "cfg.yaml").write_text(H2O.format(data=data))
    result = run("train", "-Y", "cfg.yaml", "--export", "ours.yml", "--set", "training.epochs=7")
    assert result.code == 0, result.err
    options = experiment_from_yaml((here / "ours.yml").read_text())
    assert options.training.num_epochs == 7
    assert options.lora.rank == 2
    assert options.training.accumulate_steps == 2


def test_what_an_experiment_lacks_is_an_exit_status_of_1(run, here) -> None:
    (here / "cfg.yml").write_text("base_model_architecture: b\nquantization_rank: 2\n")
    result = run("train", "-Y", "cfg.yml", "--model-name", "m")
    assert result.code == 1
    assert "'Quantization rank' 2: weights of 2 bits are not offered" in result.err


def test_a_mistake_in_a_file_is_an_exit_status_of_2(run, here) -> None:
    (here / "cfg.yml").write_text("general: {method: lora}\ntraining: {learning_rat: 1}\n")
    result = run("train", "-f", "cfg.yml")
    assert result.code == 2
    assert "'training.learning_rat', did you mean 'training.learning_rate'" in result.err


def test_detaching_has_no_use_for_an_experiment(run, here) -> None:
    result = run("train", "--preset", "legal_documents", "--detach")
    assert result.code == 2
    assert "--detach has no use here" in result.err


def test_control_characters_of_a_row_do_not_break_the_report() -> None:
    summary = {
        "num_rows": 1, "num_tokens": 3, "num_label_tokens": 1, "shortest": 3, "longest": 3,
        "truncation": "all 1 rows fit",
    }  # fmt: skip
    report = {
        "train": summary, "validation": None, "num_steps": 1, "num_trainable": 10, "seed": 1,
        "num_measured": 0,
        "first_batch": [[{"text": "a\n\x1b[31m", "is_learned": False},
                         {"text": "b", "is_learned": True}]],
    }  # fmt: skip
    lines = list(dry_run_lines(json.loads(json.dumps(report))))
    assert lines[-1] == "  1: a\\n\\x1b[31m⟦b⟧"
