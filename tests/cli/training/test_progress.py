import re

import pytest

from luthier.cli.training.progress import TrainingProgress
from luthier.client import JobState, TrainingMetric, TrainingStatus

RUNNING = TrainingStatus("t", JobState.RUNNING)


def step(number: int, loss: float) -> TrainingMetric:
    return TrainingMetric("loss", number, loss, num_steps=13)


def test_without_a_terminal_there_is_a_line_for_some_steps_and_for_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TrainingProgress() as progress:
        progress.update(TrainingStatus("t", JobState.QUEUED), [])
        progress.update(RUNNING, [step(number, 1 / number) for number in range(1, 12)])
        progress.update(RUNNING, [step(12, 0.5), step(13, 0.25)])
    assert capsys.readouterr().err.splitlines() == [
        "step 10/13  loss 0.1000",
        "step 13/13  loss 0.2500",
    ]


def test_terminal_gets_a_bar_from_the_queue_to_the_last_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with TrainingProgress() as progress:
        progress.update(TrainingStatus("t", JobState.QUEUED), [])
        progress.update(RUNNING, [step(12, 0.5)])
        progress.update(RUNNING, [step(13, 0.25)])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "13/13" in shown
    assert "loss 0.2500" in shown
