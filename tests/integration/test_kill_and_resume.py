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
from typing import Any

import pytest
from fixtures.killable_training import CASES, load, outcome_of, train

from luthier.training.checkpointing.checkpoints import (
    CHECKPOINTS_FOLDER,
    list_checkpoints,
    read_checkpoint,
)

#: Another number draws other options and other moments.
SEED = int(os.environ.get("LUTHIER_KILL_SEED", "20"))


class _Trainings:
    """Starts trainings in processes of their own and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, case: str, run_folder: Path, *, kill_after_seconds: float | None) -> int:
        """The exit code of one training; negative if the kill came before its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case} {SEED} {run_folder}\n")
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


@pytest.fixture(scope="module")
def trainings(tiny_base_models_dir: Path) -> Iterator[_Trainings]:
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "fixtures.killable_training", tiny_base_models_dir]
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


def _kill_and_finish(
    case: str, num_kills: int, trainings: _Trainings, base_models_dir: Path, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What came of a training that was killed at random moments, and of one that never was."""
    started = time.monotonic()
    expected = outcome_of(train(load(base_models_dir), case, SEED, folder / "whole"))
    whole_seconds = time.monotonic() - started
    generator = random.Random(f"{case} {SEED} {num_kills}")
    run_folder, codes = folder / "run", []
    run_folder.mkdir()
    for _ in range(num_kills):
        seconds = generator.uniform(0.0, whole_seconds / num_kills * 2)
        codes.append(trainings.run(case, run_folder, kill_after_seconds=seconds))
        # Whatever the kill left behind: what has a checkpoint's name is whole and readable.
        for checkpoints in run_folder.glob(f"*/{CHECKPOINTS_FOLDER}"):
            for step, checkpoint in list_checkpoints(checkpoints).items():
                assert read_checkpoint(checkpoint).progress.step == step
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert trainings.run(case, run_folder, kill_after_seconds=None) == 0
    assert not list(run_folder.glob(f"*/{CHECKPOINTS_FOLDER}/.*"))
    found = json.loads((run_folder / "outcome.json").read_text(encoding="utf-8"))
    return found, json.loads(json.dumps(expected))


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_training_killed_at_random_moments_gives_the_same_bits(
    case: str, trainings: _Trainings, tiny_base_models_dir: Path, tmp_path: Path
) -> None:
    found, expected = _kill_and_finish(case, 2, trainings, tiny_base_models_dir, tmp_path)
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lora", "full_fine_tuning", "early_stopping", "fused"])
def test_a_training_killed_at_twenty_random_moments_gives_the_same_bits(
    case: str, trainings: _Trainings, tiny_base_models_dir: Path, tmp_path: Path
) -> None:
    found, expected = _kill_and_finish(case, 20, trainings, tiny_base_models_dir, tmp_path)
    assert found == expected
