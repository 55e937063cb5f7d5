"""A job in the words of the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from luthier.runtime.jobs.base import Job, JobState, TrainingSpec
from luthier.runtime.services.training_status import as_status

NOW = datetime.now(UTC)
OUTPUT_DIR = Path("/out")


def job(state: JobState, place: str = "m", *reasons: str) -> Job:
    spec = TrainingSpec("module", "m", {}, OUTPUT_DIR / place, 1)
    return Job("id", spec, OUTPUT_DIR / ".jobs" / "id", state, NOW, NOW, NOW, reasons)


def test_state_times_and_reasons_are_told() -> None:
    status = as_status(job(JobState.ERRORED, "m", "training_failed: NaN"))
    assert status.to_proto().state == 5
    assert json.loads(status.to_json())["state"] == "ERRORED"
    assert status.reasons == ["training_failed: NaN"]
    assert status.completion_timestamp == NOW


def test_a_model_that_is_not_served_is_said_to_be_elsewhere() -> None:
    assert as_status(job(JobState.RUNNING, "team/a/tuned")).reasons == []
    (reason,) = as_status(job(JobState.COMPLETED, "team/a/tuned")).reasons
    assert reason.startswith("saved as 'team/a/tuned' in the server's output_dir")
    assert as_status(job(JobState.COMPLETED, "tuned")).reasons == []
