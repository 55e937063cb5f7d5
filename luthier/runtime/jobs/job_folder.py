"""What lies in a job's folder. The server writes the upper files, the worker the lower ones.

<folder>/
    job.json            the spec
    train.jsonl         one train record per line; removed when the job is complete
    validation.jsonl    likewise, if there are any
    worker.lock         held by the worker while it lives; removed when the job is complete
    metrics.jsonl       the training's progress, one JSON object per line
    worker.log          whatever the worker wrote to stdout and stderr
    run/                checkpoints and predictions; removed when the job is complete
    model/              the tuned model, until it is moved to its final place
    outcome.json        how it ended, written last
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.errors import ConflictError
from luthier.runtime.jobs.base import TrainingSpec
from luthier.training.checkpointing.checkpoints import CHECKPOINTS_FOLDER, list_checkpoints

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Args:
        word: The error's stable code, or "" if the training is complete.
        message: What went wrong, or "".
    """

    word: str = ""
    message: str = ""

    @property
    def is_complete(self) -> bool:
        """True if the tuned model is in its final place."""
        return not self.word


@dataclass(frozen=True)
class JobFolder:
    """Reads and writes the files of one job.

    Args:
        path: The folder; ``create`` makes it.
    """

    path: Path

    @property
    def train_file(self) -> Path:
        """One train record per line."""
        return self.path / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        """One validation record per line."""
        return self.path / "validation.jsonl"

    @property
    def metrics_file(self) -> Path:
        """The training's progress."""
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        """Whatever the worker wrote to stdout and stderr."""
        return self.path / "worker.log"

    @property
    def run_folder(self) -> Path:
        """Checkpoints and predictions."""
        return self.path / "run"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the training can go on from somewhere."""
        return bool(list_checkpoints(self.run_folder / CHECKPOINTS_FOLDER))

    @property
    def staged_model(self) -> Path:
        """The tuned model before it is moved to its final place."""
        return self.path / "model"

    @property
    def _lock_file(self) -> Path:
        return self.path / "worker.lock"

    def create(
        self, spec: TrainingSpec, train: Iterable[Record], validation: Iterable[Record] = ()
    ) -> None:
        """Make the folder, readable by its owner alone, and write what the worker needs."""
        self.path.mkdir(parents=True, mode=0o700)
        _write_lines(self.train_file, train)
        if spec.num_validation_records:
            _write_lines(self.validation_file, validation)
        document = {
            "module_id": spec.module_id,
            "model_name": spec.model_name,
            "parameters": dict(spec.parameters),
            "model_folder": str(spec.model_folder),
            "num_train_records": spec.num_train_records,
            "num_validation_records": spec.num_validation_records,
        }
        _write_whole(self.path / "job.json", json.dumps(document, indent=2))

    def read_spec(self) -> TrainingSpec:
        """The spec that ``create`` wrote."""
        document = json.loads((self.path / "job.json").read_text("utf-8"))
        return TrainingSpec(**{**document, "model_folder": Path(document["model_folder"])})

    @property
    def submitted_at(self) -> datetime:
        """When ``create`` wrote the spec, in UTC."""
        return datetime.fromtimestamp((self.path / "job.json").stat().st_mtime, UTC)

    def read_records(self, file: Path) -> Iterator[dict[str, Any]]:
        """The records of ``train_file`` or ``validation_file``, one after another."""
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def write_outcome(self, outcome: Outcome) -> None:
        """Say how the job ended; whole or not at all."""
        document = {"word": outcome.word, "message": outcome.message}
        _write_whole(self.path / "outcome.json", json.dumps(document))

    def read_outcome(self) -> Outcome | None:
        """How the worker ended, or None if it did not get to say."""
        try:
            return Outcome(**json.loads((self.path / "outcome.json").read_text("utf-8")))
        except FileNotFoundError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only worker of this job; the lock ends with the process, whatever ends it.

        Raises:
            ConflictError: If another process holds it.
        """
        with self._lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(f"training {self.path.name!r} is running") from error
            yield

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_data(self) -> None:
        """Remove what only a job that is to go on needs, and every text of a record; log and
        progress stay."""
        self.train_file.unlink(missing_ok=True)
        self.validation_file.unlink(missing_ok=True)
        self._lock_file.unlink(missing_ok=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)
        shutil.rmtree(self.staged_model, ignore_errors=True)

    def remove_unfinished(self) -> None:
        """Remove a model that was not moved."""
        shutil.rmtree(self.staged_model, ignore_errors=True)

    def forget_outcome(self) -> None:
        """Remove how an earlier run ended."""
        (self.path / "outcome.json").unlink(missing_ok=True)


def _write_lines(file: Path, records: Iterable[Record]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record))
            lines.write("\n")


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
