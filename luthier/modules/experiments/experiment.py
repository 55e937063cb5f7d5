"""From ``ExperimentOptions`` to a saved model: base model, data set, adapter, loop, module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.data_model.datasets.dataset import Dataset, load_dataset
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.run_options import HEAD, LORA
from luthier.modules.environment import environment
from luthier.modules.experiments.first_adapter import first_adapter, lora_below
from luthier.modules.judging import judge_with, require_judge
from luthier.modules.planning.generating import generate_with
from luthier.modules.planning.marker_tokens import (
    whole_tuned_model,
)
from luthier.modules.planning.train_plan import seed_to_resume
from luthier.modules.saving.history import TrainingHistory
from luthier.modules.text_classification.classifier import TextClassifier
from luthier.modules.text_classification.head_plan import require_classifiable
from luthier.modules.text_classification.head_tuning import HeadTuning
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.lora_tuning import LoraTuning
from luthier.modules.text_generation.peft_prompt_tuning import PeftPromptTuning
from luthier.modules.text_generation.text_generation import TextGeneration
from luthier.modules.text_generation.text_module import TextModule
from luthier.resources.base_model import BaseModel
from luthier.resources.hardware import pick_mixed_precision, pick_training_dtype
from luthier.resources.store import BaseModelLease
from luthier.training.callbacks.base import TrainingCallback
from luthier.training.callbacks.metrics_file import MetricsFile
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.job import TuningJob
from luthier.training.loop import learn
from luthier.training.preparation import settle_options
from luthier.training.processes.own_device import own_device, require_gpus
from luthier.training.processes.parallel import current_group
from luthier.training.results import TrainingResult

log = alog.use_channel(__name__)

METRICS_NAME = "metrics.jsonl"

TunedModel: TypeAlias = LoraTuning | PeftPromptTuning | TextGeneration | HeadTuning


def require_runnable(options: ExperimentOptions, *, has_result: bool = True) -> None:
    """Refuse what cannot be run; looks at no file.

    Args:
        options: Of a caller on this machine: no server limits hold.
        has_result: Whether a model is made, which wants a name.

    Raises:
        InvalidInputError: Naming the option by its path.
    """
    options.require_named(has_result=has_result)
    options.validate()
    if options.general.method == HEAD:
        require_classifiable(options.training, options.dataset, lora_below(options))


def training_device(options: ExperimentOptions) -> torch.device:
    """Where this process trains: of several processes, each has a GPU of its own.

    Args:
        options: Checked.

    Returns:
        The device.

    Raises:
        InvalidInputError: If this machine has no such device, or all processes are sent to one.
    """
    training = options.training
    word = training.device if training.is_device_given else None
    return own_device(word, default=environment().base_models.sources.default_device)


def require_devices(options: ExperimentOptions) -> None:
    """Refuse more processes than there are GPUs to train on; a CPU takes any number.

    Args:
        options: Checked.

    Raises:
        InvalidInputError: Naming both numbers.
    """
    require_gpus(options.training.num_processes, training_device(options))


@dataclass(frozen=True)
class Experiment:
    """Everything that a training needs, in memory.

    Args:
        options: Checked; the verbalizer is a template and the seed is drawn.
        lease: Of the base model.
        dataset: Read and split.
        adapter: Before its first update.
    """

    options: ExperimentOptions
    lease: BaseModelLease
    dataset: Dataset
    adapter: Adapter

    @property
    def base_model(self) -> BaseModel:
        """The frozen base model."""
        return self.lease.base_model

    def tune(
        self,
        *,
        callbacks: Sequence[TrainingCallback] = (),
        should_stop: Callable[[], bool] = bool,
    ) -> TrainingResult:
        """Learn the adapter.

        Args:
            callbacks: Told what happens.
            should_stop: Asked before every batch.

        Returns:
            How it went.

        Raises:
            LuthierError: If a row or the run is wrong, or it was stopped.
        """
        return learn(self.base_model, self.job(callbacks=callbacks, should_stop=should_stop))

    def job(
        self,
        *,
        callbacks: Sequence[TrainingCallback] = (),
        should_stop: Callable[[], bool] = bool,
    ) -> TuningJob:
        """The training, ready to be run; makes its run folder.

        Args:
            callbacks: Told what happens.
            should_stop: Asked before every batch.

        Returns:
            What the training engine takes.
        """
        general = self.options.general
        run_folder = None if general.run_folder is None else Path(general.run_folder)
        if run_folder is not None and current_group().is_main:
            run_folder.mkdir(parents=True, exist_ok=True)
            callbacks = (*callbacks, MetricsFile(run_folder / METRICS_NAME))
        return TuningJob(
            adapter=self.adapter,
            train=self.dataset.train,
            validation=self.dataset.validation,
            options=self.options.training,
            dataset=self.options.dataset,
            callbacks=callbacks,
            should_stop=should_stop,
            judge=judge_with(self.options.training, environment().judge, should_stop=should_stop),
            generate=generate_with(
                self.base_model,
                self.adapter,
                max_new_tokens=self.options.training.max_generated_tokens,
                options=environment().engine_options,
                should_stop=should_stop,
            ),
            run_folder=run_folder,
            resume_from=None if general.resume_from is None else Path(general.resume_from),
            backup_folder=None if general.backup_folder is None else Path(general.backup_folder),
        )

    def module(self, result: TrainingResult) -> TunedModel:
        """The tuned model.

        Args:
            result: Of ``tune``.

        Returns:
            The module, ready to generate and to be saved.
        """
        history = TrainingHistory.of(result, self.options.training)
        if isinstance(self.adapter, FullWeights):
            base = self.base_model
            tuned = whole_tuned_model(base, self.adapter)
            store = environment().base_models
            lease = BaseModelLease(tuned, store, None)
            generator = self._generator(TextGeneration, lease, None)
            return TextGeneration(generator, history=history)
        if isinstance(self.adapter, ClassificationHead):
            classifier = TextClassifier(
                self.lease, environment=environment(), head=self.adapter, style=self._style()
            )
            return HeadTuning(classifier, history=history)
        if self.options.general.method == LORA:
            generator = self._generator(LoraTuning, self.lease, self.adapter)
            return LoraTuning(generator, history=history)
        generator = self._generator(PeftPromptTuning, self.lease, self.adapter)
        return PeftPromptTuning(generator, history=history)

    def _generator(
        self, kind: type[TextModule], lease: BaseModelLease, adapter: Adapter | None
    ) -> TextGenerator:
        return TextGenerator(
            lease,
            producer_id=kind.PRODUCER_ID,
            environment=environment(),
            adapter=adapter,
            style=self._style(),
        )

    def _style(self) -> PromptStyle:
        # The rows of a data set are of one kind, so the first one tells.
        first_row = itertools.islice(self.dataset.train, 1)
        verbalizer, dataset = self.options.training.verbalizer, self.options.dataset
        return PromptStyle.of_training(verbalizer, dataset, first_row, self.base_model)


@contextmanager
def open_experiment(options: ExperimentOptions, *, has_result: bool = True) -> Iterator[Experiment]:
    """Read data and base model, and make the adapter.

    Args:
        options: Of a caller on this machine, who may name any file.
        has_result: Whether a model is made, which wants a name.

    Yields:
        The experiment; its base model is given back afterwards.

    Raises:
        LuthierError: If an option, a file or a row is wrong.
    """
    require_runnable(options, has_result=has_result)
    here = environment()
    resume_from = options.general.resume_from
    checkpoint = None if resume_from is None else Path(resume_from)
    training = settle_options(options.training, default_seed=seed_to_resume(checkpoint))
    verbalizer = here.verbalizers.get(training.verbalizer, training.verbalizer)
    training = replace(training, verbalizer=verbalizer)
    options = replace(options, training=training)
    dataset = load_dataset(options.dataset, has_classes=options.general.method == HEAD)
    if "ai_judge" in training.metrics:
        require_judge(training, sum(1 for _ in dataset.validation), here.judge)
    sources = here.base_models.sources
    device = training_device(options)
    with_dtype = pick_training_dtype(training.torch_dtype or sources.default_dtype, device=device)
    mixed = pick_mixed_precision(training.mixed_precision, device=device)
    options = replace(options, training=replace(training, mixed_precision=mixed))
    lease = here.base_models.acquire(
        options.general.base_model,
        dtype=with_dtype,
        device=device,
        quantization=training.quantization,
    )
    try:
        adapter = first_adapter(options, lease.base_model, dataset, here)
        yield Experiment(options, lease, dataset, adapter)
    finally:
        lease.release()
