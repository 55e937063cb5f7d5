"""The child process of one training: ``python -m luthier.runtime.jobs.worker <job folder>``.

Reads the job's spec and records, trains, saves the model beside its final place and moves it there.
SIGTERM asks it to stop; nothing is half-written, whatever ends it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import alog

from luthier.config import load_config
from luthier.config.caikit_bridge import configure_logging
from luthier.errors import CancelledError, LuthierError
from luthier.runtime.folders import publish_folder
from luthier.runtime.jobs.base import TrainingSpec
from luthier.runtime.jobs.executor import MODULE_PACKAGES_VARIABLE, PARENT_PID_VARIABLE
from luthier.runtime.jobs.job_folder import JobFolder, Outcome
from luthier.runtime.jobs.training_call import num_processes_of, train_module

log = alog.use_channel(__name__)

#: Added to the nice value, so that the servers stay responsive while a training takes the CPUs.
NICENESS = 10
_PR_SET_PDEATHSIG = 1
#: What each of several processes runs.
_LAUNCHED_MODULE = "luthier.runtime.jobs.launched_worker"


def main(arguments: list[str]) -> int:
    """Do the job in the folder that the command line names.

    Args:
        arguments: The job's folder, alone.

    Returns:
        The exit status: 0 if the model is in place.
    """
    die_with_parent()
    os.nice(NICENESS)
    signal.signal(signal.SIGTERM, _stop)
    folder = JobFolder(Path(arguments[0]))
    with folder.locked():
        outcome = _work(folder)
        folder.write_outcome(outcome)
    return 0 if outcome.is_complete else 1


def die_with_parent() -> None:
    """End this process when the server's ends, even by SIGKILL: no training goes on unseen."""
    parent = int(os.environ.get(PARENT_PID_VARIABLE, os.getppid()))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the line above; where there is no prctl, this is all.
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _work(folder: JobFolder) -> Outcome:
    try:
        configure_logging(load_config().log)
        for package in os.environ.get(MODULE_PACKAGES_VARIABLE, "luthier.modules").split(","):
            importlib.import_module(package)
        spec = folder.read_spec()
        _train(spec, folder)
        # From here on the job counts as done; a late SIGTERM must not tear the two steps apart.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        publish_folder(folder.staged_model, spec.model_folder)
        return Outcome()
    except LuthierError as error:
        log.warning("training failed", exc_info=error)
        return Outcome(error.code, str(error))
    except Exception as error:
        log.error("training failed unexpectedly", exc_info=error)
        return Outcome(LuthierError.code, f"{type(error).__name__}: {error}")


def _train(spec: TrainingSpec, folder: JobFolder) -> None:
    """Train and save the model where it is staged, here or in processes below this one."""
    num_processes = num_processes_of(spec.parameters)
    if num_processes == 1:
        train_module(spec, folder).save(str(folder.staged_model))
        return
    # Heavy, and most jobs are one process.
    from luthier.training.processes.launching import launch  # noqa: PLC0415

    launch(_LAUNCHED_MODULE, {"job_folder": str(folder.path)}, num_processes=num_processes)


def _stop(number: int, frame: FrameType | None) -> None:
    raise CancelledError("canceled by request")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
