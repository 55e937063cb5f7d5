"""The child process of one experiment: ``python -m luthier.modules.experiments.worker``.

Reads one JSON object from stdin: ``command`` (``train`` or ``dry_run``) and ``options`` in groups;
for ``train_many``, ``options`` holds a list of such ``experiments``, and each event says of which.
Answers with one JSON object per line on stdout; the last is ``done`` or ``error``::

    {"event": "start", "num_steps": 20, "num_rows": 40}
    {"event": "step", "step": 1, "loss": 3.2}
    {"event": "evaluation", "epoch": 0, "value": 2.9}
    {"event": "done", "path": "models/intents"}

It exists so that a command line need not load torch, and can stop a training by ending it: a model
is written whole, and at the end.

A training of several processes is started by torchrun from here, each as ``… worker <folder>``
(``launching``). A worker that torchrun has started, directly or with its command line, joins the
others; the main one alone speaks and writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import alog

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import CancelledError, InvalidInputError, LuthierError
from luthier.modules.environment import environment
from luthier.modules.experiments.dry_run import dry_run, peak_memory_bytes
from luthier.modules.experiments.experiment import (
    open_experiment,
    require_devices,
    require_runnable,
    training_device,
)
from luthier.modules.experiments.together import ExperimentOutcome, train_many
from luthier.training.callbacks.base import StartEvent, StepEvent, TrainingCallback
from luthier.training.processes.launched_process import (
    die_with_launcher,
    read_request,
    reporting,
    write_answer,
)
from luthier.training.processes.launching import launch
from luthier.training.processes.parallel import joined
from luthier.training.results import EvaluationPoint, TrainingResult

COMMANDS = ("train", "dry_run", "train_many")
MODULE = "luthier.modules.experiments.worker"
#: Where torchrun writes how many processes there are.
_WORLD_SIZE_VARIABLE = "WORLD_SIZE"


def main(arguments: Sequence[str]) -> int:
    """Do what stdin says, or the request in a folder.

    Args:
        arguments: The folder of ``launching``, or nothing.

    Returns:
        The exit status.
    """
    signal.signal(signal.SIGTERM, _stop)
    out = sys.stdout
    # Whatever a library prints must not get between the lines of JSON.
    sys.stdout = sys.stderr
    if arguments:
        return _main_of_launched(Path(arguments[0]), out)
    try:
        _configure_logging()
        request = json.load(sys.stdin)
        if request.get("command") == "train_many":
            # An error would be taken for that of one experiment.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        done = do(request, out)
    except LuthierError as error:
        _say(out, "error", code=error.code, message=str(error))
        return 1
    except KeyboardInterrupt:
        _say(out, "error", code=CancelledError.code, message="interrupted")
        return 130
    _say(out, "done", **done)
    return 0


def _main_of_launched(folder: Path, out: TextIO) -> int:
    """One of several processes; errors are told by the one that started them."""
    die_with_launcher()
    process = int(os.environ["RANK"])
    with reporting(folder, process), contextlib.ExitStack() as stack:
        _configure_logging()
        if process:
            out = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        done = do(read_request(folder), out)
        if process == 0:
            write_answer(folder, done)
    return 0


def _configure_logging() -> None:
    logging = environment().config.log
    alog.configure(logging.level, filters=logging.filters)


def do(request: Mapping[str, Any], out: TextIO) -> dict[str, Any]:
    """Do one command.

    Args:
        request: ``command`` and ``options``.
        out: Gets a line per event of a training.

    Returns:
        What the last line says.

    Raises:
        LuthierError: If the experiment cannot be run or fails.
    """
    command = request.get("command")
    if command == "train_many":
        return _train_many((request.get("options") or {}).get("experiments") or [], out)
    options = ExperimentOptions.from_dict(request.get("options") or {})
    if command == "dry_run":
        return dataclasses.asdict(dry_run(options))
    if command != "train":
        raise InvalidInputError(f"'command' must be one of {', '.join(COMMANDS)}, got {command!r}")
    if _must_be_launched(options, os.environ):
        require_runnable(options)
        require_devices(options)
        return launch(MODULE, request, num_processes=options.training.num_processes)
    with joined(os.environ, on_cpu=training_device(options).type == "cpu") as group:
        return _train(options, out, is_main=group.is_main)


def _must_be_launched(options: ExperimentOptions, environ: Mapping[str, str]) -> bool:
    """Whether an experiment wants processes that are not there yet.

    Args:
        options: Of the experiment.
        environ: Where torchrun says how many it started.

    Returns:
        False if torchrun has started this process.

    Raises:
        InvalidInputError: If torchrun started another number than the options ask for.
    """
    wanted = options.training.num_processes
    if _WORLD_SIZE_VARIABLE not in environ:
        return wanted > 1
    started = int(environ[_WORLD_SIZE_VARIABLE])
    if wanted not in (1, started):
        raise InvalidInputError(
            f"'environment.num_processes' is {wanted}, but torchrun started {started} processes"
        )
    return False


def _train(options: ExperimentOptions, out: TextIO, *, is_main: bool) -> dict[str, Any]:
    with open_experiment(options) as experiment:
        result = experiment.tune(callbacks=(_Speaker(out),))
        peak = peak_memory_bytes(experiment.base_model)
        path = Path(options.general.output_folder) / options.general.model_name
        if is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            experiment.module(result).save(path)
    return {**_summary(path, result), "peak_memory_bytes": peak}


def _train_many(
    all_options: Sequence[Mapping[str, Any]], out: TextIO
) -> dict[str, list[dict[str, Any]]]:
    """An entry per experiment: what ``train`` says, or the code and message of its error."""
    experiments = [ExperimentOptions.from_dict(options) for options in all_options]
    names = [options.general.model_name for options in experiments]
    if int(os.environ.get(_WORLD_SIZE_VARIABLE, "1")) > 1:
        raise InvalidInputError(
            "several experiments at once run in one process, not under torchrun"
        )
    for options in experiments:
        if _must_be_launched(options, os.environ):
            raise InvalidInputError(
                f"'environment.num_processes' of {options.general.model_name!r} is "
                f"{options.training.num_processes}; experiments that are run together have one"
            )

    def end(number: int, outcome: ExperimentOutcome) -> None:
        _say(out, "ended", experiment=names[number], **_entry(outcome))

    outcomes = train_many(
        experiments,
        callbacks=lambda number: (_Speaker(out, experiment=names[number]),),
        on_alone=lambda number, why: _say(out, "alone", experiment=names[number], reason=why),
        on_end=end,
    )
    entries = [
        {"experiment": name, **_entry(outcome)}
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    return {"experiments": entries}


def _entry(outcome: ExperimentOutcome) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        code = outcome.code if isinstance(outcome, LuthierError) else LuthierError.code
        return {"code": code, "message": str(outcome) or type(outcome).__name__}
    return _summary(outcome.path, outcome.result)


def _summary(path: Path, result: TrainingResult) -> dict[str, Any]:
    return {
        "path": str(path),
        "num_steps": result.num_steps,
        "num_rows": result.num_rows,
        "num_label_tokens": result.num_label_tokens,
        "truncation": str(result.truncation),
        "seed": result.seed,
        "seconds": result.seconds,
    }


class _Speaker(TrainingCallback):
    """Tells the parent what happens, with what else each event is to say."""

    def __init__(self, out: TextIO, **values: Any) -> None:
        self._out = out
        self._values = values

    def on_start(self, event: StartEvent) -> None:
        counts = {"num_steps": event.num_steps, "num_rows": event.num_rows}
        _say(self._out, "start", **counts, **self._values)

    def on_step(self, event: StepEvent) -> None:
        _say(self._out, "step", step=event.step, loss=event.loss, **self._values)

    def on_evaluation(self, point: EvaluationPoint) -> None:
        values = {"epoch": point.epoch, "step": point.step, "value": point.value}
        _say(self._out, "evaluation", **values, **self._values)


def _say(out: TextIO, event: str, **values: Any) -> None:
    if event in ("done", "error"):
        # The rest is tidying up, which no late signal shall tear.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
    out.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    raise CancelledError("stopped by a signal")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
