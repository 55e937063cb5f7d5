from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import ConflictError, TrainingDataError, UnknownKeyError
from luthier.modules.experiments import together
from luthier.modules.experiments.experiment import open_experiment
from luthier.modules.experiments.together import ExperimentOutcome, TunedExperiment, train_many

ROWS = [{"input": f"what is {number}?", "output": f"it is {number}"} for number in range(8)]


def experiment(folder: Path, name: str, method: str = "lora", **training: Any) -> dict[str, Any]:
    file = folder / f"{name}.jsonl"
    if not file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    content: dict[str, Any] = {
        "general": {
            "method": method,
            "model_name": name,
            "base_model": "tiny-causal",
            "output_folder": str(folder / "models"),
        },
        "dataset": {"train_dataframe": str(file), "validation_size": 0.25},
        "training": {"num_epochs": 1, "batch_size": 2, "learning_rate": 0.01, **training},
    }
    if "prompt" in method:
        content["tuning_config"] = {"num_virtual_tokens": 3}
    return content


def options_of(content: dict[str, Any]) -> ExperimentOptions:
    return ExperimentOptions.from_dict(content)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is measured is kept."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(together, "default_cache_dir", lambda: folder)
    return folder


def test_the_size_of_a_pass_is_measured_once(tmp_path: Path, cache_dir: Path) -> None:
    contents = [experiment(tmp_path, name) for name in ("one", "two")]
    train_many([options_of(content) for content in contents])
    (file,) = (cache_dir / "pass_costs").iterdir()
    measured = json.loads(file.read_text())
    assert 0 < measured["pass_tokens"] <= 16384
    before = file.stat().st_mtime_ns
    train_many([options_of(experiment(tmp_path, name)) for name in ("three", "four")])
    assert [each.stat().st_mtime_ns for each in (cache_dir / "pass_costs").iterdir()] == [before]


def test_experiments_over_one_base_give_the_models_that_each_gives_alone(tmp_path: Path) -> None:
    contents = [
        experiment(tmp_path, "small"),
        experiment(tmp_path, "prompt", "prompt_tuning", num_epochs=2),
        experiment(tmp_path, "many", "multitask_prompt_tuning", batch_size=4),
    ]
    alone: list[tuple[int, str]] = []
    ended: list[int] = []

    def end(number: int, outcome: ExperimentOutcome) -> None:
        # A model is there as soon as its own training has ended.
        assert isinstance(outcome, TunedExperiment)
        assert (outcome.path / "config.yml").is_file()
        ended.append(number)

    outcomes = train_many(
        [options_of(content) for content in contents],
        on_alone=lambda number, why: alone.append((number, why)),
        on_end=end,
    )
    assert alone == []
    assert sorted(ended) == [0, 1, 2]
    assert ended[-1] == 1  # the one with most updates
    for content, outcome in zip(contents, outcomes, strict=True):
        assert isinstance(outcome, TunedExperiment)
        assert outcome.path == tmp_path / "models" / content["general"]["model_name"]
        with open_experiment(options_of(content)) as expected:
            result = expected.tune()
        for one, other in zip(outcome.result.losses, result.losses, strict=True):
            assert abs(one.value - other.value) <= 1e-3
        assert luthier.load(outcome.path).run("what is 3?", max_new_tokens=2).generated_text


def test_what_shares_no_passes_says_why(tmp_path: Path) -> None:
    other_precision = experiment(tmp_path, "half")
    other_precision["architecture"] = {"torch_dtype": "bfloat16"}
    alone: dict[int, str] = {}
    outcomes = train_many(
        [
            options_of(experiment(tmp_path, "small")),
            options_of(experiment(tmp_path, "whole", "full_fine_tuning", learning_rate=1e-4)),
            options_of(experiment(tmp_path, "prompt", "prompt_tuning")),
            options_of(other_precision),
        ],
        on_alone=lambda number, why: alone.update({number: why}),
    )
    assert all(isinstance(outcome, TunedExperiment) for outcome in outcomes), outcomes
    assert sorted(alone) == [1, 3]
    assert "full_fine_tuning" in alone[1]
    assert "base model" in alone[3]


def test_an_experiment_fails_for_itself(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(
        "".join(json.dumps({**row, "output": ""}) + "\n" for row in ROWS)
    )
    outcomes = train_many(
        [options_of(experiment(tmp_path, name)) for name in ("good", "bad", "better")]
    )
    assert isinstance(outcomes[1], TrainingDataError)
    assert not (tmp_path / "models" / "bad").exists()
    for outcome in (outcomes[0], outcomes[2]):
        assert isinstance(outcome, TunedExperiment)


def test_two_experiments_cannot_write_one_model(tmp_path: Path) -> None:
    both = [options_of(experiment(tmp_path, "same")) for _ in range(2)]
    with pytest.raises(ConflictError, match="experiments 1 and 2 would both write model 'same'"):
        train_many(both)


def test_a_wrong_option_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UnknownKeyError):
        options_of(experiment(tmp_path, "b", learning_rat=1))
    assert not (tmp_path / "models").exists()
