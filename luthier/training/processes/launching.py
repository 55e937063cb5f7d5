"""Start several processes of one training by torchrun, and say in one error how they ended.

What they tell each other lies in a folder (``launched_process``). torchrun ends all of them when
one fails; which one failed, and not because of another, is found out here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from luthier.errors import (
    CancelledError,
    LuthierError,
    TrainingFailedError,
    error_class,
)
from luthier.exit_status import cause_of_death
from luthier.training.processes.launched_process import ANSWER, REQUEST, read_reports

#: Seconds that processes have to end before they are killed, once one of them has failed.
_SHUTDOWN_SECONDS = 10
_HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_NUM_THREADS_VARIABLE = "OMP_NUM_THREADS"


def launch(module: str, request: Mapping[str, Any], *, num_processes: int) -> dict[str, Any]:
    """Run ``python -m module <folder>`` in several processes of this machine, and wait.

    Args:
        module: Reads the request with ``launched_process.read_request``.
        request: JSON values.
        num_processes: At least two. They meet at a port that is free.

    Returns:
        What the main process gave to ``launched_process.write_answer``.

    Raises:
        LuthierError: Of the class that a process raised first, naming the process if it is not the
            main one, whose own words reach the caller anyway.
        TrainingFailedError: If a process died; names it and the signal or status.
        CancelledError: If this process was told to end.
    """
    # Every line of its own is about its inner workings; what counts comes back as an error.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault(_NUM_THREADS_VARIABLE, str(_threads_each(num_processes)))
    with tempfile.TemporaryDirectory(prefix="luthier-") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=folder.name,
            max_restarts=0,
            local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        try:
            with _own_signal_handlers():
                elastic_launch(config, sys.executable)("-m", module, str(folder))
        except ChildFailedError as error:
            raise _first_failure(folder, error.failures, num_processes) from error
        except SignalException as error:
            raise CancelledError("stopped by a signal") from error
        answer: dict[str, Any] = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        return answer


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back afterwards what torchrun replaces."""
    before = {number: signal.getsignal(number) for number in _HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(
    folder: Path, failures: Mapping[int, ProcessFailure], num_processes: int
) -> LuthierError:
    """What went wrong, and not what went wrong because of it.

    A process that somebody killed leaves no word; those that waited for it then do, of a broken
    connection. torchrun ends the rest by SIGTERM, and by SIGKILL when their time is over.
    """
    first_seen = min(failure.timestamp for failure in failures.values())
    for process, failure in sorted(failures.items()):
        was_ended = failure.timestamp >= first_seen + _SHUTDOWN_SECONDS
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and not was_ended:
            cause = cause_of_death(failure.exitcode)
            return TrainingFailedError(
                f"process {process} of {num_processes} {cause}; the others were ended"
            )
    reports = read_reports(folder)
    told = [report for report in reports if report.code not in (None, CancelledError.code)]
    for report in told or reports:
        where = f"process {report.process} of {num_processes}"
        if report.code is not None:
            message = f"{where}: {report.message}" if report.process else report.message
            return error_class(report.code)(message)
        return TrainingFailedError(f"{where} ended by {report.type}: {report.message}")
    process, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    return TrainingFailedError(
        f"process {process} of {num_processes} {cause_of_death(failure.exitcode)} without a word"
    )


def _threads_each(num_processes: int) -> int:
    return max(1, (os.cpu_count() or 1) // num_processes)
