"""A progress file, written by the loop's own callback, as clients read it."""

from __future__ import annotations

import json

from luthier.data_model.options.training_options import TrainingOptions
from luthier.runtime.services.training_metrics import read_metrics
from luthier.training.callbacks.base import StartEvent, StepEvent
from luthier.training.callbacks.metrics_file import MetricsFile
from luthier.training.data.examples import TruncationReport
from luthier.training.results import EvaluationPoint


def test_what_the_callback_writes_is_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    callback = MetricsFile(file)
    report = TruncationReport(*([0] * len(TruncationReport.__dataclass_fields__)))
    callback.on_start(StartEvent(TrainingOptions(), 4, 2, 2, 8, report))
    callback.on_step(StepEvent(0, 1, 3.5, 0.1, 2, 10, 4, 0.01))
    callback.on_evaluation(EvaluationPoint(0, 1, 3.25))
    assert [
        (metric["name"], metric["step"], metric["num_steps"], metric["value"])
        for metric in read_metrics(file)
    ] == [("loss", 1, 2, 3.5), ("validation_loss", 1, 2, 3.25)]
    callback.close()


def test_there_is_nothing_before_the_training_starts(tmp_path):
    assert read_metrics(tmp_path / "none") == []


def test_a_line_that_is_being_written_waits(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps({"event": "step", "step": 1, "loss": 1.0})
    file.write_text(f'{whole}\n{whole}\n{{"event": "st')
    assert len(read_metrics(file)) == 2
