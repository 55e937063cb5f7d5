"""Several experiments at once: those over one copy of a base model share its passes.

An experiment fails for itself: its error takes the place of its model, and the others go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import alog

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import ConflictError, LuthierError
from luthier.modules.environment import environment
from luthier.modules.experiments.experiment import Experiment, open_experiment
from luthier.resources.base_model import BaseModel
from luthier.resources.gguf import default_cache_dir
from luthier.training.callbacks.base import TrainingCallback
from luthier.training.fusion.fused import PassTokens, tune_many
from luthier.training.fusion.live_job import Outcome
from luthier.training.fusion.pass_cost import measured_pass_cost
from luthier.training.results import TrainingResult

log = alog.use_channel(__name__)

#: In the cache folder: what passes of base models cost on this machine.
PASS_COSTS_FOLDER = "pass_costs"


@dataclass(frozen=True)
class TunedExperiment:
    """An experiment that came to its end.

    Args:
        path: Folder of the saved model.
        result: How the training went.
    """

    path: Path
    result: TrainingResult


#: How an experiment ended.
ExperimentOutcome: TypeAlias = TunedExperiment | Exception


def _no_callbacks(_: int) -> Sequence[TrainingCallback]:
    return ()


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def train_many(
    experiments: Sequence[ExperimentOptions],
    *,
    callbacks: Callable[[int], Sequence[TrainingCallback]] = _no_callbacks,
    should_stop: Callable[[], bool] = bool,
    on_alone: Callable[[int, str], None] = _ignore,
    on_end: Callable[[int, ExperimentOutcome], None] = _ignore,
) -> list[ExperimentOutcome]:
    """Run experiments and save their models, each as soon as it is tuned.

    How many tokens share a pass, or that this is measured, and how many trainings are under way at
    once, is the config's ``training.fusion``.

    Args:
        experiments: Of a caller on this machine. Each writes a model of its own.
        callbacks: Given an experiment's number, from 0: who is told what happens in it.
        should_stop: Asked before every batch of each.
        on_alone: Told the number of an experiment that shares no passes, and why.
        on_end: Told the number of an experiment, and how it ended, as soon as it is known.

    Returns:
        As many outcomes as experiments, in their order.

    Raises:
        ConflictError: If two write one model; nothing is trained then.
    """
    _require_distinct(experiments)
    outcomes: dict[int, ExperimentOutcome] = {}
    with contextlib.ExitStack() as stack:
        opened: dict[int, Experiment] = {}
        for number, options in enumerate(experiments):
            try:
                opened[number] = stack.enter_context(open_experiment(options))
            except (LuthierError, OSError) as error:
                outcomes[number] = error
                on_end(number, error)
        groups: dict[int, list[int]] = {}
        for number, experiment in opened.items():
            groups.setdefault(id(experiment.base_model), []).append(number)
        for numbers in groups.values():
            if len(numbers) == 1 and len(opened) > 1:
                on_alone(numbers[0], "no other experiment has its base model in its precision")
            _train_group(
                [opened[number] for number in numbers],
                numbers,
                outcomes,
                callbacks=callbacks,
                should_stop=should_stop,
                on_alone=on_alone,
                on_end=on_end,
            )
    return [outcomes[number] for number in range(len(experiments))]


def _train_group(
    experiments: Sequence[Experiment],
    numbers: Sequence[int],
    outcomes: dict[int, ExperimentOutcome],
    *,
    callbacks: Callable[[int], Sequence[TrainingCallback]],
    should_stop: Callable[[], bool],
    on_alone: Callable[[int, str], None],
    on_end: Callable[[int, ExperimentOutcome], None],
) -> None:
    """Train those of one base model and save each."""

    def end(index: int, outcome: Outcome) -> None:
        number = numbers[index]
        outcomes[number] = _saved(experiments[index], outcome)
        on_end(number, outcomes[number])

    fusion = environment().config.training.fusion
    base_model = experiments[0].base_model
    is_alone = len(experiments) == 1
    tune_many(
        base_model,
        (
            experiment.job(callbacks=callbacks(number), should_stop=should_stop)
            for experiment, number in zip(experiments, numbers, strict=True)
        ),
        # One that has nobody to share with needs no network to share.
        max_pass_tokens=0 if is_alone else _max_pass_tokens(base_model),
        max_live_jobs=fusion.max_live_jobs,
        on_end=end,
        on_alone=_ignore if is_alone else lambda index, why: on_alone(numbers[index], why),
    )


def _max_pass_tokens(base_model: BaseModel) -> int | PassTokens:
    """As configured, or as a group that is taken up had it, or as measured on this machine."""
    fusion = environment().config.training.fusion
    configured = fusion.max_pass_tokens(base_model.device.type)
    if configured >= 0:
        return configured

    def decide(had: int | None) -> int:
        if had is not None and had <= fusion.largest_measured_pass:
            return had
        cache = environment().base_models.sources.cache_dir or default_cache_dir()
        return measured_pass_cost(
            base_model,
            most_tokens=fusion.largest_measured_pass,
            max_seconds=fusion.measure_seconds,
            cache_folder=cache / PASS_COSTS_FOLDER,
        ).pass_tokens

    return decide


def _saved(experiment: Experiment, outcome: Outcome) -> ExperimentOutcome:
    if isinstance(outcome, Exception):
        return outcome
    path = _path_of(experiment.options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        experiment.module(outcome).save(path)
    except (LuthierError, OSError) as error:
        log.warning("model %s was not saved: %s", experiment.options.general.model_name, error)
        return error
    return TunedExperiment(path, outcome)


def _require_distinct(experiments: Sequence[ExperimentOptions]) -> None:
    seen: dict[Path, int] = {}
    for number, options in enumerate(experiments, start=1):
        path = _path_of(options).absolute()
        if path in seen:
            raise ConflictError(
                f"experiments {seen[path]} and {number} would both write model "
                f"{options.general.model_name!r}; give each a 'model_name' of its own"
            )
        seen[path] = number


def _path_of(options: ExperimentOptions) -> Path:
    return Path(options.general.output_folder) / options.general.model_name
