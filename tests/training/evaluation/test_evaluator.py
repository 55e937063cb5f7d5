"""When is measured, what is measured, and what it decides, seen from a whole training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.metrics_file import MetricsFile
from luthier.training.checkpointing.checkpoints import list_checkpoints
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

RECORDS = [
    GenerationTrainRecord(input=f"row {number}", output="yes" if number % 2 else "no, never")
    for number in range(8)
]
#: 4 updates per epoch, 8 in all.
OPTIONS = TrainingOptions(num_epochs=2, learning_rate=0.01, batch_size=2, accumulate_steps=1)


def _tune(base: BaseModel, **arguments: Any) -> TrainingResult:
    tensor = torch.randn(4, base.hidden_size, generator=torch.Generator().manual_seed(1))
    place: Any = "decoder" if base.kind == "causal" else "encoder"
    names = {field.name for field in dataclasses.fields(OPTIONS)}
    options = {name: arguments.pop(name) for name in list(arguments) if name in names}
    return tune(
        base,
        SoftPrompt(tensor, kind=base.kind, places=(place,)),
        RECORDS,
        options=dataclasses.replace(OPTIONS, **options),
        **{"validation": RECORDS[:5], **arguments},
    )


@pytest.mark.parametrize(
    ("evaluation_epochs", "expected"),
    [
        (1.0, [4, 8]),
        (0.5, [2, 4, 6, 8]),
        (0.1, list(range(1, 9))),
        (0.75, [3, 6, 8]),
        (1.5, [6, 8]),
        (5.0, [8]),
    ],
)
def test_evaluations_come_every_fraction_of_an_epoch_and_at_the_end(
    evaluation_epochs: float, expected: list[int], tiny_causal_base: BaseModel
) -> None:
    result = _tune(tiny_causal_base, evaluation_epochs=evaluation_epochs)
    assert [point.step for point in result.validation_losses] == expected


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_an_evaluation_before_training_measures_the_start(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    result = _tune(base, evaluate_before_training=True, validation=RECORDS, num_epochs=1)
    whole = _tune(base, batch_size=8, num_epochs=1)
    first = result.validation_losses[0]
    assert (first.epoch, first.step) == (0, 0)
    assert first.value == pytest.approx(whole.losses[0].value, rel=1e-5)


def test_no_epochs_are_an_evaluation_alone(tiny_causal_base: BaseModel) -> None:
    result = _tune(tiny_causal_base, evaluate_before_training=True, num_epochs=0)
    assert [point.step for point in result.validation_losses] == [0]
    assert result.best_step == 0


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_metrics_of_tokens_are_those_of_each_row_alone(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    metrics = ("loss", "perplexity", "row_perplexity", "token_accuracy")
    options = {"metrics": metrics, "evaluate_before_training": True, "num_epochs": 0}
    together = _tune(base, **options).validation_losses[0]
    alone = [
        _tune(base, **options, validation=[record]).validation_losses[0] for record in RECORDS[:5]
    ]
    mean = sum(point.metrics["perplexity"] or 0 for point in alone) / 5
    assert together.metrics["row_perplexity"] == pytest.approx(mean, rel=1e-4)
    assert together.metrics["perplexity"] == pytest.approx(math.exp(together.value), rel=1e-6)
    assert together.metrics["loss"] == together.value
    accuracies = [point.metrics["token_accuracy"] or 0.0 for point in alone]
    assert min(accuracies) <= (together.metrics["token_accuracy"] or 0.0) <= max(accuracies)


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_metrics_of_texts_see_what_was_generated_from_what_the_model_reads(
    base_name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    asked: list[list[str]] = []

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        decode = base.tokenizer.decode
        asked.append([decode(ids, skip_special_tokens=True) for ids in prompts])
        return ["yes"] * len(prompts)

    result = _tune(
        base, metrics=("exact_match", "loss"), generate=generate, run_folder=tmp_path, num_epochs=1
    )
    assert asked == [[f"row {number}" for number in range(5)]]
    assert result.validation_losses[0].metrics["exact_match"] == 2 / 5
    (folder,) = (tmp_path / "predictions").iterdir()
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert folder.name == "step-000000004"
    assert [row["row"] for row in table] == [1, 2, 3, 4, 5]
    assert [row["input"] for row in table] == asked[0]
    assert [row["reference"] for row in table] == [record.output for record in RECORDS[:5]]
    assert [row["generated"] for row in table] == ["yes"] * 5
    assert [row["exact_match"] for row in table] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert all(row["loss"] > 0 for row in table)
    lines = [
        json.loads(line)
        for line in (folder / "best_and_worst.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    best = [line for line in lines if line["end"] == "best"]
    assert [line["exact_match"] for line in best] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [line["place"] for line in best] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ("bleu",)}, InvalidInputError, "names bleu, which compare generated text"),
        ({"metrics": ()}, InvalidInputError, "'metrics' must name at least one"),
        ({"metrics": ("blue",)}, InvalidInputError, "did you mean 'bleu'"),
        (
            {"metrics": ("exact_match",), "generate": lambda prompts: ["yes"]},
            TrainingFailedError,
            "1 texts were generated for 5 rows",
        ),
        (
            {"validation": None, "early_stopping_patience": 2},
            InvalidInputError,
            "'early_stopping_patience' needs validation data",
        ),
        (
            {"validation": None, "evaluate_before_training": True},
            InvalidInputError,
            "'evaluate_before_training' needs validation data",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tiny_causal_base: BaseModel
) -> None:
    with pytest.raises(error, match=message):
        _tune(tiny_causal_base, **arguments)


def test_training_ends_early_when_nothing_gets_better_and_a_resume_knows_it(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    # What is validated is the opposite of what is learned, so the start is the best.
    validation = [GenerationTrainRecord(input=record.input, output="日本") for record in RECORDS]
    arguments: dict[str, Any] = {
        "validation": validation,
        "learning_rate": 0.5,
        "num_epochs": 20,
        "evaluation_epochs": 0.5,
        "evaluate_before_training": True,
        "early_stopping_patience": 3,
        "schedule": "constant",
    }
    result = _tune(tiny_causal_base, **arguments, run_folder=tmp_path)
    assert result.is_stopped_early
    assert result.best_step is not None
    assert result.num_steps == result.best_step + 6 < 80
    assert result.num_steps in list_checkpoints(tmp_path / "checkpoints")
    resumed = _tune(tiny_causal_base, **arguments, resume_from=tmp_path)
    assert resumed.num_steps == result.num_steps
    assert resumed.is_stopped_early


def test_the_first_metric_says_what_is_best(tiny_causal_base: BaseModel) -> None:
    answers = iter([["no, never"] * 5, ["yes"] * 5, ["?"] * 5, ["?"] * 5])
    result = _tune(
        tiny_causal_base,
        metrics=("exact_match",),
        evaluation_epochs=0.5,
        generate=lambda prompts: next(answers),
    )
    values = [point.metrics["exact_match"] for point in result.validation_losses]
    assert values == [3 / 5, 2 / 5, 0.0, 0.0]
    assert result.best_step == 2


def test_metrics_are_in_the_metrics_file(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _tune(tiny_causal_base, metrics=("perplexity",), callbacks=[MetricsFile(path)])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    values = [line["perplexity"] for line in lines if line["event"] == "evaluation"]
    assert len(values) == 2 and all(value > 1 for value in values)
    assert all(line["gradient_norm"] > 0 for line in lines if line["event"] == "step")
