"""What an experiment's training begins with: heads here, each other method in test_experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import InvalidInputError, NotSupportedError, TrainingDataError
from luthier.modules.experiments.dry_run import dry_run
from luthier.modules.experiments.experiment import open_experiment
from luthier.modules.experiments.together import TunedExperiment, train_many


def head_options(tmp_path: Path, **more: Any) -> ExperimentOptions:
    file = tmp_path / "sms.jsonl"
    rows = [
        {"text": f"text {number}", "label": ("ham", "spam")[number % 2]} for number in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content: dict[str, Any] = {
        "general": {"method": "head", "model_name": "m", "base_model": "tiny-causal"},
        "dataset": {"train_dataframe": str(file), "validation_size": 0.25},
        "training": {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-3},
        "lora": {"rank": 2},
    }
    for path, value in more.items():
        group, _, name = path.partition("__")
        content.setdefault(group, {})[name] = value
    return ExperimentOptions.from_dict(content)


@pytest.mark.parametrize("use_lora", [True, False])
def test_a_head_of_an_experiment_is_that_of_a_call(use_lora: bool, tmp_path: Path) -> None:
    options = head_options(tmp_path, head__use_lora=use_lora, lora__rank=2 if use_lora else None)
    with open_experiment(options) as experiment:
        result = experiment.tune()
        experiment.module(result).save(tmp_path / "m")
    called = luthier.HeadTuning.train(
        "tiny-causal",
        str(tmp_path / "sms.jsonl"),
        num_epochs=2,
        batch_size=4,
        learning_rate=1e-3,
        use_lora=use_lora,
        training_options={"validation_size": 0.25},
        **({"rank": 2} if use_lora else {}),
    )
    saved = luthier.load(tmp_path / "m")
    assert saved.labels == ("ham", "spam")
    assert saved.adapter.content_hash() == called.adapter.content_hash()
    assert {"accuracy", "macro_f1"} <= set(result.validation_losses[-1].metrics)


def test_a_head_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    options = head_options(tmp_path)
    with open_experiment(options) as experiment:
        experiment.module(experiment.tune()).save(tmp_path / "m")
        tuned = experiment.adapter.content_hash()
    again = options.laid_over({"general.start_from": str(tmp_path / "m")})
    with open_experiment(again) as experiment:
        assert experiment.adapter.content_hash() == tuned
    other = again.laid_over({"head.labels": ["spam", "ham"]})
    with (
        pytest.raises(InvalidInputError, match="'start_from' tells 'ham', 'spam' apart"),
        open_experiment(other),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset__prompt_format": "markers"}, InvalidInputError, "'prompt_format' is 'markers'"),
        ({"prediction__metrics": "bleu"}, InvalidInputError, "'metrics' names 'bleu'"),
        ({"lora__initialisation": "eva"}, NotSupportedError, "cannot start as 'eva'"),
        ({"head__use_lora": False}, InvalidInputError, "'head.use_lora' is false and there are"),
        ({"head__labels": "spam"}, InvalidInputError, "2 labels or more, got 1"),
        ({"head__labels": ["spam", "eggs"]}, TrainingDataError, "has label 'ham', which is none"),
        ({"general__base_model": "tiny-seq2seq"}, NotSupportedError, "causal"),
        (
            {"dataset__prompt_column": [], "dataset__answer_column": "text"},
            TrainingDataError,
            "these rows are plain text",
        ),
    ],
)
def test_what_no_head_can_be_tuned_with_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    options = head_options(tmp_path, **changes)
    with pytest.raises(error, match=message), open_experiment(options) as experiment:
        experiment.tune()


def test_rows_of_one_class_are_refused(tmp_path: Path) -> None:
    options = head_options(tmp_path)
    Path(options.dataset.train_dataframe).write_text('{"text": "a", "label": "ham"}\n' * 4)
    with (
        pytest.raises(TrainingDataError, match="have label 'ham'; there is nothing to tell apart"),
        open_experiment(options),
    ):
        pass


def test_a_dry_run_shows_texts_and_their_classes(tmp_path: Path) -> None:
    report = dry_run(head_options(tmp_path).laid_over({"general.model_name": ""}))
    assert (report.train.num_rows, report.num_steps) == (9, 6)
    shown = {tuple(segment.text for segment in row) for row in report.first_batch}
    assert len(shown) == 4
    for text, label in shown:
        number = int(text.rpartition(" ")[2])
        assert label == ("ham", "spam")[number % 2]


def test_a_head_among_several_experiments_is_trained_by_itself(tmp_path: Path) -> None:
    heads = [
        head_options(tmp_path, general__model_name=name, general__output_folder=str(tmp_path))
        for name in ("one", "two")
    ]
    reasons: dict[int, str] = {}
    outcomes = train_many(heads, on_alone=reasons.__setitem__)
    assert all(isinstance(outcome, TunedExperiment) for outcome in outcomes)
    assert reasons.keys() == {0, 1}
    one, two = (luthier.load(tmp_path / name) for name in ("one", "two"))
    assert one.adapter.content_hash() == two.adapter.content_hash()
