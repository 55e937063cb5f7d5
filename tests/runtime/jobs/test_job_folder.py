"""What the server and the worker leave for each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import ConflictError
from luthier.runtime.jobs.base import TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder, Outcome

RECORDS = [{"input": "a\nb", "output": "é"}, {"input": "{{output}}", "output": "\u2028"}]


def make(tmp_path: Path, num_validation_records: int = 0) -> tuple[JobFolder, TrainingSpec]:
    spec = TrainingSpec(
        "module",
        "model",
        {"base_model": "tiny", "tuning_config": {"num_virtual_tokens": 4}},
        tmp_path / "models" / "model",
        num_train_records=2,
        num_validation_records=num_validation_records,
    )
    folder = JobFolder(tmp_path / "jobs" / "1")
    folder.create(spec, RECORDS, RECORDS[:num_validation_records])
    return folder, spec


def test_the_worker_reads_the_spec_that_was_written(tmp_path):
    folder, spec = make(tmp_path)
    assert JobFolder(folder.path).read_spec() == spec


def test_records_survive_whatever_characters_they_hold(tmp_path):
    folder, _ = make(tmp_path, num_validation_records=1)
    assert list(folder.read_records(folder.train_file)) == RECORDS
    assert list(folder.read_records(folder.validation_file)) == RECORDS[:1]


def test_the_data_is_for_its_owner_alone(tmp_path):
    folder, _ = make(tmp_path)
    assert folder.path.stat().st_mode & 0o077 == 0


def test_there_is_no_outcome_before_the_end(tmp_path):
    folder, _ = make(tmp_path)
    assert folder.read_outcome() is None
    folder.write_outcome(Outcome("training_failed", "NaN"))
    assert folder.read_outcome() == Outcome("training_failed", "NaN")
    assert not Outcome("training_failed").is_complete
    assert Outcome().is_complete


def test_data_and_an_unfinished_model_are_removed_and_the_log_stays(tmp_path):
    folder, _ = make(tmp_path, num_validation_records=1)
    folder.log_file.write_text("log")
    folder.staged_model.mkdir()
    with folder.locked():
        pass
    (folder.run_folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    assert folder.has_checkpoint
    folder.remove_unfinished()
    assert folder.has_checkpoint and folder.train_file.exists()
    assert not folder.staged_model.exists()
    folder.remove_data()
    assert sorted(path.name for path in folder.path.iterdir()) == ["job.json", "worker.log"]
    folder.remove()
    assert not folder.path.exists()


def test_a_job_has_one_worker_at_a_time(tmp_path):
    folder, _ = make(tmp_path)
    with folder.locked(), pytest.raises(ConflictError, match="is running"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_outcome_of_an_earlier_run_can_be_forgotten(tmp_path):
    folder, _ = make(tmp_path)
    folder.forget_outcome()
    folder.write_outcome(Outcome("training_failed", "killed"))
    folder.forget_outcome()
    assert folder.read_outcome() is None
