"""Look before running: what the data becomes, how long a tuning takes, how much memory it needs.

The data is read, checked and tokenized as a training would; then a few updates are made on an
adapter that is thrown away. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.adapters.added_tokens import grown_tokenizer
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.modules.experiments.experiment import Experiment, open_experiment
from luthier.resources.base_model import BaseModel, BaseModelKind
from luthier.training.callbacks.base import StepEvent, TrainingCallback
from luthier.training.data.bucketing import Window, num_windows
from luthier.training.data.examples import IGNORED_LABEL, Example, TrainingData
from luthier.training.data.row_share import RowShare
from luthier.training.loop import tune
from luthier.training.preparation import read_data

#: Updates that are measured.
NUM_MEASURED = 3
#: Of a training, what costs time or writes and does not belong to an update.
_WITHOUT_SURROUNDINGS = {
    "num_epochs": 1,
    "save_checkpoint": "last",
    "save_every_steps": 0,
    "evaluate_before_training": False,
    "early_stopping_patience": 0,
    "metrics": ("loss",),
    "trackers": (),
    "silence_progress_bars": True,
}


@dataclass(frozen=True)
class TextSegment:
    """A stretch of a row.

    Args:
        text: Of its tokens.
        is_learned: Whether they are.
    """

    text: str
    is_learned: bool


@dataclass(frozen=True)
class DataSummary:
    """One part of the data set as tokens.

    Args:
        num_rows: Examples.
        num_tokens: All that the model reads and writes.
        num_label_tokens: Those that are learned.
        shortest: Tokens of the shortest row.
        longest: Tokens of the longest.
        truncation: What was cut, in words.
    """

    num_rows: int
    num_tokens: int
    num_label_tokens: int
    shortest: int
    longest: int
    truncation: str


@dataclass(frozen=True)
class DryRunReport:
    """What a training would be.

    Args:
        train: What is learned from.
        validation: What is held out, or None.
        first_batch: Its rows, cut where learning starts and stops.
        num_steps: Updates.
        num_trainable: Numbers that are learned.
        seed: In use.
        num_measured: Updates that were measured.
        seconds_per_step: Mean of those.
        estimated_seconds: All updates, by tokens; without evaluations and loading. None without
            any update.
        peak_memory_bytes: The most that this process or, on a GPU, its tensors held while the
            widest updates were made, the base model included.
    """

    train: DataSummary
    validation: DataSummary | None
    first_batch: tuple[tuple[TextSegment, ...], ...]
    num_steps: int
    num_trainable: int
    seed: int
    num_measured: int
    seconds_per_step: float | None
    estimated_seconds: float | None
    peak_memory_bytes: int | None


def dry_run(options: ExperimentOptions, *, num_measured: int = NUM_MEASURED) -> DryRunReport:
    """Prepare a training as it would be, and make a few updates for the clock.

    Args:
        options: Of the training.
        num_measured: Updates to measure; 0 measures neither time nor memory.

    Returns:
        What was found.

    Raises:
        LuthierError: If the training would fail before its first update, or in one of those.
    """
    with open_experiment(options, has_result=False) as experiment:
        training = experiment.options.training
        data, validation = read_data(
            experiment.base_model,
            experiment.adapter,
            experiment.dataset.train,
            experiment.dataset.validation,
            options=training,
            should_stop=bool,
            dataset=experiment.options.dataset,
        )
        windows = RowShare(experiment.base_model, training).windows(data.lengths, epoch=0)
        first_batch = data.batch(windows[0][0], epoch=0)
        clock = _Clock()
        if num_measured and training.num_epochs:
            _measure(experiment, data, windows, clock, num_measured)
        kind = experiment.base_model.kind
        added = experiment.adapter.added_tokens()
        tokenizer = grown_tokenizer(experiment.base_model.tokenizer, added)
        shown = dataclasses.replace(experiment.base_model, tokenizer=tokenizer)
        train = _summary(data, kind)
        return DryRunReport(
            train=train,
            validation=None if validation is None else _summary(validation, kind),
            first_batch=tuple(
                _segments(example, shown, class_labels=data.class_labels) for example in first_batch
            ),
            num_steps=training.num_epochs
            * num_windows(
                len(data),
                batch_size=training.batch_size,
                accumulate_steps=training.accumulate_steps,
            ),
            num_trainable=sum(value.numel() for _, value in experiment.adapter.named_parameters()),
            seed=training.seed,
            num_measured=len(clock.steps),
            seconds_per_step=clock.seconds_per_step,
            estimated_seconds=clock.estimate(train.num_tokens * training.num_epochs),
            peak_memory_bytes=peak_memory_bytes(experiment.base_model) if clock.steps else None,
        )


class _Clock(TrainingCallback):
    """Keeps what the measured updates took."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    @property
    def seconds_per_step(self) -> float | None:
        steps = self._warm_steps()
        return sum(step.seconds for step in steps) / len(steps) if steps else None

    def estimate(self, num_tokens: int) -> float | None:
        """Seconds for so many tokens, at the speed that was measured."""
        steps = self._warm_steps()
        measured = sum(step.num_input_tokens for step in steps)
        return num_tokens * sum(step.seconds for step in steps) / measured if measured else None

    def _warm_steps(self) -> Sequence[StepEvent]:
        """The first update also allocates; it counts where there is no other."""
        return self.steps[1:] or self.steps


def _measure(
    experiment: Experiment,
    data: TrainingData,
    windows: Sequence[Window],
    clock: _Clock,
    num_measured: int,
) -> None:
    """Make updates from the widest window, for the memory, and from the first ones."""
    widest = max(windows, key=lambda window: _width(window, data.lengths))
    chosen = [widest, *(window for window in windows if window is not widest)][:num_measured]
    rows = {data.examples[index].row for window in chosen for batch in window for index in batch}
    options = experiment.options
    known = {field.name for field in dataclasses.fields(options.training)}
    changes = {name: value for name, value in _WITHOUT_SURROUNDINGS.items() if name in known}
    training = dataclasses.replace(options.training, **changes)  # type: ignore[arg-type]
    tune(
        experiment.base_model,
        experiment.adapter,
        [
            record
            for number, record in enumerate(experiment.dataset.train, start=1)
            if number in rows
        ],
        options=training,
        dataset=options.dataset,
        callbacks=(clock,),
    )


def _width(window: Window, lengths: Sequence[int]) -> int:
    """Positions of the largest batch, padding included."""
    return max(len(batch) * max(lengths[index] for index in batch) for batch in window)


def _summary(data: TrainingData, kind: BaseModelKind) -> DataSummary:
    """Counts as the loop does: what a seq2seq model writes stands beside what it reads."""
    lengths = [
        len(each.input_ids) + (len(each.labels) if kind == "seq2seq" else 0)
        for each in data.examples
    ]
    return DataSummary(
        num_rows=len(data),
        num_tokens=sum(lengths),
        num_label_tokens=sum(example.num_label_tokens for example in data.examples),
        shortest=min(lengths),
        longest=max(lengths),
        truncation=str(data.truncation),
    )


def _segments(
    example: Example, base: BaseModel, *, class_labels: Sequence[str]
) -> tuple[TextSegment, ...]:
    """The row as text, cut where learning starts and stops; of a classification, its class."""
    if class_labels:
        return (
            TextSegment(_decoded(example.input_ids[:-1], base), is_learned=False),
            TextSegment(class_labels[example.labels[-1]], is_learned=True),
        )
    if base.kind == "seq2seq":
        return (
            TextSegment(_decoded(example.input_ids, base), is_learned=False),
            TextSegment(_decoded(example.labels, base), is_learned=True),
        )
    found: list[TextSegment] = []
    start = 0
    flags = [label != IGNORED_LABEL for label in example.labels]
    for end in range(1, len(flags) + 1):
        if end == len(flags) or flags[end] != flags[start]:
            text = _decoded(example.input_ids[start:end], base)
            found.append(TextSegment(text, flags[start]))
            start = end
    return tuple(found)


def _decoded(token_ids: Sequence[int], base: BaseModel) -> str:
    decoded: str = base.tokenizer.decode(
        [token for token in token_ids if token != IGNORED_LABEL],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return decoded


def peak_memory_bytes(base: BaseModel) -> int | None:
    """The most memory so far: of the GPU's tensors, or resident of this process.

    Args:
        base: Says where the work was done.

    Returns:
        Bytes; None where the system does not tell.
    """
    if base.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(base.device))
    if not sys.platform.startswith("linux"):
        return None
    import resource  # noqa: PLC0415  not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
