from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import luthier
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import (
    InvalidInputError,
    NameNotAllowedError,
)
from luthier.modules.experiments.experiment import (
    open_experiment,
    require_runnable,
)
from luthier.training.preparation import read_data

ROWS = [{"question": f"what is {number}?", "reply": f"it is {number}"} for number in range(12)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def options_of(data: Path, method: str, **more: Any) -> ExperimentOptions:
    content: dict[str, Any] = {
        "general": {"method": method, "model_name": "m", "base_model": "tiny-causal"},
        "dataset": {
            "train_dataframe": str(data),
            "prompt_column": ["question"],
            "answer_column": "reply",
            "validation_size": 0.2,
            "prompt_format": "markers",
        },
        "training": {"num_epochs": 1, "batch_size": 4, "accumulate_steps": 1},
    }
    if "prompt" in method or method in ("p_tuning", "prefix_tuning"):
        content["tuning_config"] = {"num_virtual_tokens": 3}
    for path, value in more.items():
        group, _, name = path.partition("__")
        content.setdefault(group, {})[name] = value
    return ExperimentOptions.from_dict(content)


@pytest.mark.parametrize(
    "method",
    [
        "prompt_tuning",
        "multitask_prompt_tuning",
        "p_tuning",
        "prefix_tuning",
        "lora",
        "full_fine_tuning",
    ],
)
def test_each_method_runs_from_options_to_a_saved_model(
    method: str, data: Path, tmp_path: Path
) -> None:
    options = options_of(data, method, training__learning_rate=1e-3)
    with open_experiment(options) as experiment:
        result = experiment.tune()
        experiment.module(result).save(tmp_path / "m")
    assert result.num_rows == 9
    assert result.num_steps == 3
    assert len(result.validation_losses) >= 1
    model = luthier.load(tmp_path / "m")
    assert model.verbalizer == "{{input}}"
    assert model.generator.style.text_answer_separator == "<|answer|>"
    assert model.run("what is 3?", max_new_tokens=2).generated_tokens <= 2
    assert len(model.training_logs) >= 3
    model.release()


def test_a_lora_on_a_quantised_base_goes_on_in_another_experiment(
    data: Path, tmp_path: Path
) -> None:
    quantised = {"architecture__quantization": "nf4", "training__learning_rate": 1e-3}
    with open_experiment(options_of(data, "lora", **quantised)) as experiment:
        assert experiment.base_model.quantization == "nf4"
        experiment.module(experiment.tune()).save(tmp_path / "first")
        learned = dict(experiment.adapter.named_parameters())
    going_on = options_of(data, "lora", general__start_from=str(tmp_path / "first"))
    with open_experiment(going_on) as experiment:
        assert experiment.base_model.quantization == "none"
        for name, parameter in experiment.adapter.named_parameters():
            assert parameter.equal(learned[name])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("architecture__quantization", "nf4", "'architecture.quantization' has no use with method"),
        ("general__start_from", "first", "'general.start_from' is for adapters"),
    ],
)
def test_what_is_for_adapters_is_refused_for_whole_models(
    data: Path, option: str, value: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        options_of(data, "full_fine_tuning", **{option: value}).validate()


def test_full_fine_tuning_starts_from_weights_in_a_file(data: Path, tmp_path: Path) -> None:
    run = {"training__num_epochs": 1, "training__learning_rate": 1e-2}
    first = options_of(data, "full_fine_tuning", general__run_folder=str(tmp_path / "run"), **run)
    with open_experiment(first) as experiment:
        experiment.tune()
        expected = experiment.adapter.content_hash()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    file = checkpoint / "parameters.safetensors"
    again = options_of(data, "full_fine_tuning", architecture__pretrained_weights=str(file))
    with open_experiment(again) as experiment:
        assert experiment.adapter.content_hash() == expected
    with pytest.raises(InvalidInputError, match=r"no use with method lora.*'general.start_from'"):
        options_of(data, "lora", architecture__pretrained_weights=str(file)).validate()


@pytest.mark.parametrize("prompt_format", ["markers", "chat_template", "verbalizer"])
@pytest.mark.parametrize("base", ["tiny-causal", "tiny-seq2seq"])
def test_the_saved_model_reads_a_request_as_it_read_rows(
    base: str, prompt_format: str, data: Path, tmp_path: Path
) -> None:
    """Token for token, special tokens included: the row before its answer is the prompt."""
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    options = options_of(
        data,
        "lora",
        general__base_model=base,
        dataset__validation_size=0,
        dataset__prompt_format=prompt_format,
        dataset__chat_template=template if prompt_format == "chat_template" else None,
        training__num_epochs=1,
    )
    with open_experiment(options) as experiment:
        rows, _ = read_data(
            experiment.base_model,
            experiment.adapter,
            experiment.dataset.train,
            None,
            options=experiment.options.training,
            should_stop=bool,
            dataset=experiment.options.dataset,
        )
        first = rows.examples[0]
        is_seq2seq = experiment.base_model.kind == "seq2seq"
        num_prompt = sum(label == -100 for label in first.labels)
        read = first.input_ids if is_seq2seq else first.input_ids[:num_prompt]
        experiment.module(experiment.tune()).save(tmp_path / "m")
    model = luthier.load(tmp_path / "m")
    assert model.generator.encode(ROWS[0]["question"]) == tuple(read)
    model.release()


def test_checkpoints_and_metrics_go_where_they_are_asked(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = options_of(data, "lora", general__run_folder=str(run))
    with open_experiment(options) as experiment:
        experiment.tune()
    assert (run / "checkpoints").is_dir()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "start"
    assert events[-1] == "finish"


@pytest.mark.parametrize("method", ["prompt_tuning", "full_fine_tuning"])
def test_metrics_that_compare_text_get_it_from_the_engine(
    method: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = options_of(
        data,
        method,
        general__run_folder=str(run),
        prediction__metrics=["bleu", "rougeL"],
        prediction__max_generated_tokens=6,
        training__learning_rate=1e-3,
    )
    with open_experiment(options) as experiment:
        result = experiment.tune()
    (point,) = result.validation_losses
    assert set(point.metrics) == {"bleu", "rougeL"}
    assert all(value is not None for value in point.metrics.values())
    (file,) = run.glob("predictions/*/predictions.parquet")
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 3
    assert all(row["generated"] and row["reference"].startswith("it is") for row in rows)


@pytest.mark.parametrize(
    "path", ["general.model_name", "general.base_model", "dataset.train_dataframe"]
)
def test_what_is_missing_is_named(path: str, data: Path) -> None:
    options = options_of(data, "lora").laid_over({path: ""})
    with pytest.raises(InvalidInputError, match=f"'{path}' is missing"):
        require_runnable(options)


def test_a_name_that_leaves_the_folder_is_refused(data: Path) -> None:
    options = options_of(data, "lora", general__model_name="../m")
    with pytest.raises(NameNotAllowedError, match="model_name"):
        require_runnable(options)
