"""The course of a training survives saving, in caikit-nlp's format."""

import json
from datetime import UTC, datetime

import pytest

from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ArtifactError, InvalidInputError
from luthier.modules.saving.history import NO_HISTORY, TrainingHistory
from luthier.training.data.examples import TruncationReport
from luthier.training.results import EvaluationPoint, LossPoint, TrainingResult

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RESULT = TrainingResult(
    losses=(LossPoint(0, 1, 2.5, 0.1, NOW), LossPoint(0, 2, 1.5, 0.05, NOW)),
    validation_losses=(EvaluationPoint(0, 2, 1.75),),
    truncation=TruncationReport(num_rows=4, num_source_rows=1, num_source_tokens=7),
    validation_truncation=None,
    num_rows=4,
    num_steps=2,
    num_input_tokens=40,
    num_label_tokens=8,
    seed=73,
    seconds=1.23456,
)


def test_lines_are_caikit_nlps_with_the_validation_loss_apart():
    lines = TrainingHistory.of(RESULT, TrainingOptions()).lines
    assert lines[0] == {
        "name": "loss",
        "data": {
            "epoch": 0,
            "step": 1,
            "value": 2.5,
            "learning_rate": 0.1,
            "timestamp": "2026-01-02T00:00:00+00:00",
        },
    }
    assert lines[2] == {"name": "validation_loss", "data": {"epoch": 0, "step": 2, "value": 1.75}}


def test_the_summary_tells_options_and_truncation_and_no_device():
    summary = TrainingHistory.of(RESULT, TrainingOptions(device="cuda:3")).summary
    assert summary["options"]["learning_rate"] == 0.3
    assert "device" not in summary["options"]
    assert summary["truncation"].startswith("of 4 rows: source cut in 1 rows by 7 tokens")


def test_what_is_written_is_read_again(tmp_path):
    history = TrainingHistory.of(RESULT, TrainingOptions())
    history.write(tmp_path)
    config = json.loads(json.dumps(history.config))
    assert TrainingHistory.read(tmp_path, config) == history


def test_a_model_without_history_has_an_empty_one(tmp_path):
    assert TrainingHistory.read(tmp_path, {}) == NO_HISTORY
    assert TrainingHistory.read(tmp_path, {"training_logs": "gone.jsonl"}) == NO_HISTORY
    assert NO_HISTORY.config == {"training_logs": "training_logs.jsonl"}


@pytest.mark.parametrize("text", ["{oops", "[1]", '"text"', "\xff"])
def test_damaged_lines_are_refused(tmp_path, text):
    (tmp_path / "training_logs.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match="training_logs"):
        TrainingHistory.read(tmp_path, {"training_logs": "training_logs.jsonl"})


@pytest.mark.parametrize("name", ["../logs.jsonl", "/etc/passwd", "a/../../b"])
def test_lines_of_another_folder_are_not_read(tmp_path, name):
    with pytest.raises(InvalidInputError):
        TrainingHistory.read(tmp_path, {"training_logs": name})
