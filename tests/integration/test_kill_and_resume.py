"""A training that is killed again and again ends with the adapter of one that never was."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.killable_training import load, outcome_of, train

from luthier.training.checkpointing.checkpoints import (
    CHECKPOINTS_FOLDER,
    list_checkpoints,
    read_checkpoint,
)


class _Trainings:
    """Starts trainings in a process of their own and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *, kill_after_seconds: float | None) -> int:
        """The exit code of one training; negative if the kill came before its end."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        pid = self._read_number()
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self._read_number()

    def _read_number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def trainings(tiny_base_models_dir: Path, run_folder: Path) -> Iterator[_Trainings]:
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "fixtures.killable_training", tiny_base_models_dir, run_folder]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != "ready":
            pass
        try:
            yield _Trainings(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _kill_and_compare(
    num_kills: int, trainings: _Trainings, base_models_dir: Path, run_folder: Path, whole: Path
) -> None:
    started = time.monotonic()
    expected = outcome_of(*train(load(base_models_dir), whole))
    whole_seconds = time.monotonic() - started
    generator = random.Random(os.environ.get("LUTHIER_KILL_SEED", num_kills))
    codes = []
    for _ in range(num_kills):
        seconds = generator.uniform(0.0, whole_seconds / num_kills * 2)
        codes.append(trainings.run(kill_after_seconds=seconds))
        # Whatever the kill left behind: what has a checkpoint's name is whole and readable.
        for step, folder in list_checkpoints(run_folder / CHECKPOINTS_FOLDER).items():
            assert read_checkpoint(folder).progress.step == step
    assert -signal.SIGKILL in codes
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert trainings.run(kill_after_seconds=None) == 0
    outcome = json.loads((run_folder / "outcome.json").read_text(encoding="utf-8"))
    assert outcome == json.loads(json.dumps(expected))
    assert not list((run_folder / CHECKPOINTS_FOLDER).glob(".*"))


def test_a_training_killed_at_six_random_moments_gives_the_same_bits(
    trainings: _Trainings, tiny_base_models_dir: Path, run_folder: Path, tmp_path: Path
) -> None:
    _kill_and_compare(6, trainings, tiny_base_models_dir, run_folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_training_killed_at_twenty_random_moments_gives_the_same_bits(
    trainings: _Trainings, tiny_base_models_dir: Path, run_folder: Path, tmp_path: Path
) -> None:
    _kill_and_compare(20, trainings, tiny_base_models_dir, run_folder, tmp_path / "whole")
