"""Processes that torchrun starts: what they find comes back, and who failed first is named."""

import os
import signal
from pathlib import Path

import pytest

from luthier.errors import LuthierError, TrainingDataError, TrainingFailedError
from luthier.training.processes.launching import launch


@pytest.fixture(autouse=True)
def path_of_fixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")


def _launch(*behaviour: str) -> dict[str, object]:
    request = {"behaviour": behaviour, "said": "é"}
    return launch("fixtures.launched", request, num_processes=len(behaviour))


def test_every_process_gets_the_request_and_the_main_one_answers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert _launch("answer", "answer", "answer") == {"num_processes": 3, "heard": "é"}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        (("wait", "die"), TrainingFailedError, "process 1 of 2 was killed by signal 9 .SIGKILL."),
        (("wait", "exit"), TrainingFailedError, "process 1 of 2 ended with exit status 3"),
        (("wait", "bug"), TrainingFailedError, "process 1 of 2 ended by ZeroDivisionError: a bug"),
        (("wait", "invalid_training_data"), TrainingDataError, "^process 1 of 2: as asked$"),
        (("invalid_training_data", "wait"), TrainingDataError, "^as asked$"),
    ],
)
def test_the_process_that_failed_is_named_and_the_others_are_ended(
    behaviour: tuple[str, ...], kind: type[LuthierError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        _launch(*behaviour)
