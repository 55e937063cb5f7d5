from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.fake_api import Answer, FakeApi, listening

from luthier.cli.app import app
from luthier.cli.failures import run_command


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
Serve = Callable[[dict[str, Answer | list[Answer]]], tuple[str, FakeApi]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, as the console script would."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("LUTHIER_URL", "LUTHIER_TRACEBACK", "CONFIG_FILES"):
        monkeypatch.delenv(name, raising=False)

    def run_line(*arguments: object) -> Result:
        capsys.readouterr()
        code = run_command(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_line


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a fake server that gives these answers: its URL, and what it was asked."""
    with ExitStack() as stack:

        def start(answers: dict[str, Answer | list[Answer]]) -> tuple[str, FakeApi]:
            api = FakeApi(answers)
            return stack.enter_context(listening(api)), api

        yield start


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    return file
