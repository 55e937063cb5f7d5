"""What a launched process and the one that launched it tell each other, by files in one folder.

A process leaves a file if it ends by an error, so that the error which came first can be told::

    <folder>/
      request.json      for all
      answer.json       what the main process found
      process-1.json    {"code": "training_failed", "message": "step 3: …", "time_ns": …}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError

REQUEST, ANSWER = "request.json", "answer.json"
_MAX_MESSAGE_CHARS = 2000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Report:
    """The error that ended a process.

    Args:
        process: Number of the process.
        code: Of a ``LuthierError``; None for any other.
        message: For people.
        type: Name of the class.
        time_ns: When it was raised.
    """

    process: int
    code: str | None
    message: str
    type: str
    time_ns: int


def die_with_launcher() -> None:
    """End this process when the one that launched it does, even by SIGKILL. Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def read_request(folder: Path) -> dict[str, Any]:
    """What ``launch`` was given."""
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    return request


def write_answer(folder: Path, answer: Mapping[str, Any]) -> None:
    """Hand what was found to the process that launched this one."""
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


@contextlib.contextmanager
def reporting(folder: Path, process: int) -> Iterator[None]:
    """Leave word of an error that ends a process, for as long as this lasts.

    Args:
        folder: As the command line named it.
        process: Number of this process.

    Yields:
        Nothing.
    """
    try:
        yield
    except BaseException as error:
        report = {
            "code": error.code if isinstance(error, LuthierError) else None,
            "message": str(error)[:_MAX_MESSAGE_CHARS],
            "type": type(error).__name__,
            "time_ns": time.time_ns(),
        }
        partial = folder / f".process-{process}"
        partial.write_text(json.dumps(report), encoding="utf-8")
        partial.replace(folder / f"process-{process}.json")
        raise


def read_reports(folder: Path) -> list[Report]:
    """The reports of all processes that left one, the first error first.

    Args:
        folder: Where ``reporting`` left them.

    Returns:
        The reports.
    """
    found = []
    for file in folder.glob("process-*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        found.append(Report(int(file.stem.removeprefix("process-")), **content))
    return sorted(found, key=lambda report: report.time_ns)
