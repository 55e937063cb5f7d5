"""``luthier train`` for experiments: show what was imported, look, or train; on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.cli.training.experiment_process import run_in_child
from luthier.cli.training.experiment_source import ExperimentSource
from luthier.data_model.experiment_file import experiment_to_yaml
from luthier.data_model.other_systems.importing import Fate, ImportedExperiment

#: Where stderr shows every so many updates.
LINE_STEPS = 10
#: Marks around what is learned, where the first batch is shown.
LEARNED = ("⟦", "⟧")
#: Where torchrun writes which of several processes this is; the first one speaks.
RANK_VARIABLE = "RANK"
#: Most characters of one stretch of text that are shown.
MAX_SHOWN_CHARS = 2000


def run_experiment(
    source: ExperimentSource,
    *,
    is_dry: bool,
    export: Path | None,
    base_models_dir: Path | None,
    as_json: bool,
) -> None:
    """Do what was asked for.

    Args:
        source: What.
        is_dry: Only look.
        export: File that gets the experiment in our words; nothing is run unless ``is_dry``.
        base_models_dir: Folder of base models; None keeps the environment's.
        as_json: Print JSON on stdout.

    Raises:
        LuthierError: If it cannot be run, or fails.
    """
    if source.imported is not None:
        for line in import_lines(source.imported):
            print(line, file=sys.stderr)
    source.options.validate()
    if export is not None:
        export.write_text(experiment_to_yaml(source.options), encoding="utf-8")
        print(f"wrote {export}", file=sys.stderr)
        if not is_dry:
            return
    # Before the child, which loads torch for seconds.
    source.options.require_named(has_result=not is_dry)
    is_silent = int(os.environ.get(RANK_VARIABLE, "0")) > 0
    progress = _Progress()
    done = run_in_child(
        "dry_run" if is_dry else "train",
        source.options.to_dict(),
        base_models_dir=base_models_dir,
        on_event=progress.show,
    )
    if is_silent:
        return
    if as_json:
        done.pop("event")
        print(json.dumps(done, ensure_ascii=False))
    elif is_dry:
        for line in dry_run_lines(done):
            print(line)
    else:
        print(f"tuned {source.options.general.model_name}: {done['path']}")


def import_lines(imported: ImportedExperiment) -> Iterator[str]:
    """The mapping report, for people.

    Args:
        imported: Of another system.

    Yields:
        Lines; refused settings first.
    """
    counts = ", ".join(f"{len(imported.lines(fate))} {fate}" for fate in Fate)
    yield f"an experiment of {imported.system}: {counts}"
    for fate in (Fate.REFUSED, Fate.MAPPED, Fate.IGNORED):
        for line in imported.lines(fate):
            yield f"  {line}"


def dry_run_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What a dry run found, for people.

    Args:
        report: As the child sends it.

    Yields:
        Lines.
    """
    yield from _data_lines("train", report["train"])
    if report["validation"] is not None:
        yield from _data_lines("validation", report["validation"])
    yield f"updates: {report['num_steps']}; learned numbers: {report['num_trainable']:,}"
    yield f"seed: {report['seed']}"
    yield f"first batch, learned between {LEARNED[0]} and {LEARNED[1]}:"
    for number, row in enumerate(report["first_batch"], start=1):
        yield f"  {number}: {''.join(_segment(segment) for segment in row)}"
    if report["num_measured"]:
        yield (
            f"time: {report['seconds_per_step']:.2f} s per update, "
            f"about {_duration(report['estimated_seconds'])} in all "
            f"(from {report['num_measured']} updates; loading and evaluation come on top)"
        )
        if report["peak_memory_bytes"] is not None:
            yield (
                f"memory: {report['peak_memory_bytes'] / 2**20:,.0f} MiB at most in "
                f"{report['num_measured']} updates, the widest of an epoch among them"
            )


def _data_lines(name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{name}: {summary['num_rows']} rows of {summary['shortest']} to {summary['longest']} "
        f"tokens, {summary['num_tokens']:,} in all, {summary['num_label_tokens']:,} learned"
    )
    yield f"  truncation: {summary['truncation']}"


def _segment(segment: Mapping[str, Any]) -> str:
    text = segment["text"]
    if len(text) > MAX_SHOWN_CHARS:
        left_out = len(text) - MAX_SHOWN_CHARS
        text = f"{text[:MAX_SHOWN_CHARS]}[{left_out} more characters]"
    # Line ends and control characters would break the frame of the report.
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return f"{LEARNED[0]}{text}{LEARNED[1]}" if segment["is_learned"] else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


class _Progress:
    """Lines on stderr."""

    def __init__(self) -> None:
        self._num_steps = 0

    def show(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._num_steps = event["num_steps"]
            print(f"{event['num_rows']} rows, {self._num_steps} updates", file=sys.stderr)
        elif kind == "step":
            is_due = event["step"] % LINE_STEPS == 0 or event["step"] == self._num_steps
            if is_due:
                line = f"step {event['step']}/{self._num_steps}  loss {event['loss']:.4f}"
                print(line, file=sys.stderr, flush=True)
        elif kind == "evaluation":
            line = f"epoch {event['epoch'] + 1}: validation loss {event['value']:.4f}"
            print(line, file=sys.stderr, flush=True)
