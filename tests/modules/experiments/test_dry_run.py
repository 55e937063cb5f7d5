from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import TrainingDataError
from luthier.modules.experiments.dry_run import dry_run

ROWS = [{"input": f"what is {number}?", "output": "z" * (number + 1)} for number in range(10)]


def options_of(folder: Path, base_model: str, **dataset: object) -> ExperimentOptions:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ExperimentOptions.from_dict(
        {
            "general": {"method": "lora", "model_name": "m", "base_model": base_model},
            "dataset": {"train_dataframe": str(file), "validation_size": 0.2, **dataset},
            "training": {"num_epochs": 5, "batch_size": 2, "accumulate_steps": 1},
        }
    )


@pytest.mark.parametrize("base_model", ["tiny-causal", "tiny-seq2seq"])
def test_a_report_counts_rows_tokens_and_steps(tmp_path: Path, base_model: str) -> None:
    report = dry_run(options_of(tmp_path, base_model))
    assert (report.train.num_rows, report.num_steps) == (8, 20)
    assert report.validation is not None
    assert report.validation.num_rows == 2
    assert report.train.truncation == "all 8 rows fit"
    assert report.train.shortest < report.train.longest <= report.train.num_tokens
    assert 0 < report.train.num_label_tokens < report.train.num_tokens
    assert report.num_trainable > 0
    assert report.num_measured == 3
    assert report.seconds_per_step is not None
    assert report.estimated_seconds is not None
    # The estimate goes by tokens, and two rows were measured at a time.
    tokens_per_step = (
        report.train.num_tokens * 5 * report.seconds_per_step / report.estimated_seconds
    )
    assert 2 * report.train.shortest <= tokens_per_step <= 2 * report.train.longest
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_bytes > 50_000_000


def test_the_first_batch_shows_what_is_learned(tmp_path: Path) -> None:
    report = dry_run(options_of(tmp_path, "tiny-causal"), num_measured=0)
    assert len(report.first_batch) == 2
    outputs = {row["input"]: row["output"] for row in ROWS}
    for prompt, answer in report.first_batch:
        assert not prompt.is_learned
        assert answer.is_learned
        assert answer.text == outputs[prompt.text] + "</s>"
    assert report.estimated_seconds is None


def test_markers_and_answers_are_told_apart(tmp_path: Path) -> None:
    report = dry_run(options_of(tmp_path, "tiny-causal", prompt_format="markers"), num_measured=0)
    prompt, answer = report.first_batch[0]
    assert prompt.text.startswith("<|prompt|>what is ")
    assert prompt.text.endswith("</s><|answer|>")
    assert answer.text.endswith("z</s>")


def test_markers_that_become_tokens_are_counted_as_one_and_shown(tmp_path: Path) -> None:
    known = options_of(tmp_path, "tiny-causal", prompt_format="markers")
    pieces = dry_run(known, num_measured=0)
    report = dry_run(known.laid_over({"tokenizer.add_prompt_answer_tokens": True}), num_measured=1)
    assert report.first_batch == pieces.first_batch
    assert report.train.num_tokens < pieces.train.num_tokens - 8 * 8
    # Three rows of 32 numbers.
    assert report.num_trainable == pieces.num_trainable + 3 * 32
    assert report.num_measured == 1


def test_nothing_is_written(tmp_path: Path) -> None:
    options = options_of(tmp_path, "tiny-causal").laid_over({"general.output_folder": "models"})
    before = sorted(tmp_path.rglob("*"))
    dry_run(options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_row_that_cannot_be_learned_from_is_named(tmp_path: Path) -> None:
    options = options_of(tmp_path, "tiny-causal")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"input": "a", "output": ""}\n')
    with pytest.raises(TrainingDataError, match="11"):
        dry_run(options.laid_over({"dataset.validation_size": 0.0}), num_measured=0)
