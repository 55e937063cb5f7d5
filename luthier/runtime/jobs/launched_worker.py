"""One process of several: ``python -m luthier.runtime.jobs.launched_worker <folder>``.

torchrun starts them below the job's worker (``training/processes/launching``), which says how the
job ended and moves the model to its place. The main process alone writes progress, checkpoints and
the model.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from luthier.config import load_config
from luthier.config.caikit_bridge import configure_logging
from luthier.data_model.options.training.machine import DETECT_DEVICE
from luthier.errors import CancelledError
from luthier.runtime.jobs.base import TrainingSpec
from luthier.runtime.jobs.executor import MODULE_PACKAGES_VARIABLE
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.jobs.training_call import train_module
from luthier.training.processes.launched_process import (
    die_with_launcher,
    read_request,
    reporting,
    write_answer,
)
from luthier.training.processes.own_device import own_device
from luthier.training.processes.parallel import joined


def main(arguments: list[str]) -> int:
    """Train with the other processes.

    Args:
        arguments: The folder of ``launching``, alone.

    Returns:
        The exit status. Errors are left in the folder for the one that launched this.
    """
    die_with_launcher()
    signal.signal(signal.SIGTERM, _stop)
    launch_folder = Path(arguments[0])
    with reporting(launch_folder, int(os.environ["RANK"])):
        config = load_config()
        configure_logging(config.log)
        for package in os.environ.get(MODULE_PACKAGES_VARIABLE, "luthier.modules").split(","):
            importlib.import_module(package)
        folder = JobFolder(Path(read_request(launch_folder)["job_folder"]))
        spec = folder.read_spec()
        with joined(os.environ, on_cpu=_trains_on_cpu(spec, config.device)) as group:
            model = train_module(spec, folder)
            if group.is_main:
                model.save(str(folder.staged_model))
                write_answer(launch_folder, {})
    return 0


def _trains_on_cpu(spec: TrainingSpec, default_device: str) -> bool:
    word = spec.parameters.get("device")
    given = None if word == DETECT_DEVICE else word
    return own_device(given, default=default_device).type == "cpu"


def _stop(number: int, frame: FrameType | None) -> None:
    raise CancelledError("canceled by request")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
