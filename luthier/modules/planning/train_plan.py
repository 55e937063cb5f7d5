"""What a training will do, with everything refused that can be known before weights are loaded.

A runtime makes a plan when a request comes in, to refuse it at once; ``train`` makes the same plan
and then follows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from luthier.adapters.base import Adapter
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.training_options import (
    TrainingOptions,
)
from luthier.data_model.streams import StreamRecord
from luthier.data_model.training_settings import (
    SETTINGS_ARGUMENT,
    given_settings,
)
from luthier.errors import (
    InvalidInputError,
    TrainingDataError,
)
from luthier.modules.environment import Environment
from luthier.modules.judging import judge_with, require_judge
from luthier.modules.leasing import AnyBaseModel
from luthier.modules.planning.division import divide
from luthier.modules.planning.generating import generate_with
from luthier.modules.planning.given_options import (
    given_dataset_options,
    given_training_options,
    resolve_verbalizer,
)
from luthier.modules.planning.hooks import TrainingHooks, given_hooks, limits_for
from luthier.modules.planning.named_base_model import (
    describe_base_model,
    in_dtype,
    spelling_of,
)
from luthier.modules.planning.pretrained_weights import find_weights
from luthier.modules.planning.starting_point import find_start
from luthier.modules.planning.stream_reading import StreamReader, check_row_limit
from luthier.resources.base_model import BaseModel, BaseModelKind
from luthier.resources.hardware import parse_device, pick_mixed_precision, pick_training_dtype
from luthier.resources.store import BaseModelLease
from luthier.training.checkpointing.checkpoints import find_checkpoint, read_checkpoint
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.loop import tune
from luthier.training.preparation import settle_options
from luthier.training.processes.own_device import own_device, require_gpus
from luthier.training.results import TrainingResult


@dataclass(frozen=True)
class TrainingPlan:
    """A training that nothing known so far speaks against.

    Args:
        base_model: What to tune, as the caller gave it.
        base_model_name: As it is found again.
        kind: Of the base model.
        records: Training data, at least one record.
        validation_records: May be empty.
        options: Hyperparameters, checked; the verbalizer is the template, not its name, and the
            seed is drawn.
        dataset: How records become text, and what is drawn anew in each epoch.
        start: Folder of the adapter to go on from; None starts anew.
        weights: Files that take the place of the base model's weights; none leaves them.
        hooks: The caller's.
        environment: Where it happens.
    """

    base_model: AnyBaseModel
    base_model_name: str
    kind: BaseModelKind
    records: tuple[StreamRecord, ...]
    validation_records: tuple[StreamRecord, ...]
    options: TrainingOptions
    dataset: DatasetOptions
    start: Path | None
    weights: tuple[Path, ...]
    hooks: TrainingHooks
    environment: Environment

    def acquire(self, *, is_original: bool = False) -> BaseModelLease:
        """Lease the base model in the precision to train in, loading it if need be.

        Args:
            is_original: Whether it shall be as it is, though the training has it quantised.

        Returns:
            The lease; its owner releases it.
        """
        quantization = NONE if is_original else self.options.quantization
        store = self.environment.base_models
        if isinstance(self.base_model, BaseModel):
            base_model = in_dtype(self.base_model, self.options.torch_dtype)
            quantised = base_model.quantised(quantization)
            return BaseModelLease(quantised, store, None)
        device = own_device(self.options.device, default=store.sources.default_device)
        return store.acquire(
            self.base_model,
            dtype=pick_training_dtype(
                self.options.torch_dtype or store.sources.default_dtype, device=device
            ),
            device=device,
            quantization=quantization,
            from_request=self.hooks.from_request,
        )

    def tune(self, base_model: BaseModel, adapter: Adapter) -> TrainingResult:
        """Follow the plan.

        Args:
            base_model: From ``acquire``.
            adapter: Learned in place.

        Returns:
            How it went.
        """
        return tune(
            base_model,
            adapter,
            self.records,
            validation=self.validation_records,
            options=replace(
                self.options,
                mixed_precision=pick_mixed_precision(
                    self.options.mixed_precision, device=base_model.device
                ),
            ),
            dataset=self.dataset,
            callbacks=self.hooks.callbacks,
            should_stop=self.hooks.should_stop,
            run_folder=self.hooks.run_folder,
            resume_from=self.hooks.resume_from,
            judge=judge_with(
                self.options, self.environment.judge, should_stop=self.hooks.should_stop
            ),
            generate=generate_with(
                base_model,
                adapter,
                max_new_tokens=self.options.max_generated_tokens,
                options=self.environment.engine_options,
                should_stop=self.hooks.should_stop,
            ),
        )

    def prompt_style(self, base_model: BaseModel) -> PromptStyle:
        """How the tuned model's prompts are written: as they were learned.

        Args:
            base_model: From ``acquire``.

        Returns:
            The style.
        """
        return PromptStyle.of_training(
            self.options.verbalizer, self.dataset, self.records, base_model
        )


@dataclass(frozen=True)
class AdapterPlan(TrainingPlan, ABC):
    """The plan of a training whose result is an adapter."""

    @classmethod
    def of(cls, plan: TrainingPlan, **own: Any) -> Self:
        """What any training plans, and what this method adds.

        Args:
            plan: Of any training.
            **own: The fields that this class adds.

        Returns:
            The whole plan.
        """
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)}, **own)

    @abstractmethod
    def make_adapter(self, base_model: BaseModel) -> Adapter:
        """The adapter before its first update.

        Args:
            base_model: From ``acquire``.

        Returns:
            A fresh one, or the earlier result to go on from.
        """


def plan_training(
    arguments: Mapping[str, Any],
    *,
    module_id: str,
    required: tuple[str, ...] = ("base_model", "train_stream"),
    defaults: TrainingOptions,
    environment: Environment,
    reads_classes: bool = False,
    tunes_all_weights: bool = False,
) -> TrainingPlan:
    """Check the arguments of ``train`` and read its data. Loads no weights.

    Args:
        arguments: ``base_model``, ``train_stream``, ``val_stream``, hooks, and hyperparameters
            under any of their names. One that has its default counts as not given, so that a
            signature's default does not fight with an alias.
        module_id: What is to be trained.
        required: Arguments that must be there.
        defaults: Of the module.
        environment: Limits and what is allowed.
        reads_classes: Whether each record is a text with one label, which is no text to write.
        tunes_all_weights: Whether the method changes the base model's own weights, which then may
            start elsewhere.

    Returns:
        The plan.

    Raises:
        LuthierError: Naming the argument, its value and the limit, or the row.
    """
    for name in required:
        if arguments.get(name) is None:
            raise InvalidInputError(f"train() missing 1 required argument: {name!r}")
    hooks = given_hooks(arguments)
    settings = given_settings(arguments.get(SETTINGS_ARGUMENT))
    options = given_training_options(arguments, settings, defaults)
    dataset = given_dataset_options(settings, environment, hooks)
    template = resolve_verbalizer(options.verbalizer, environment, hooks)
    options = replace(options, verbalizer=template)
    options.validate(limits_for(hooks, environment))
    options = settle_options(options, default_seed=seed_to_resume(hooks.resume_from))
    device = parse_device(options.device or environment.base_models.sources.default_device)
    if hooks.from_request:
        require_gpus(options.num_processes, device)
    base_model = arguments["base_model"]
    name, kind = describe_base_model(base_model, environment, hooks)
    read = StreamReader(template, dataset, hooks, environment, reads_classes).read
    records = read(arguments["train_stream"], "train_stream")
    if not records:
        raise TrainingDataError("train_stream cannot be empty")
    check_row_limit(len(records), module_id, {name, spelling_of(base_model)}, environment)
    validation_records = read(arguments.get("val_stream"), "val_stream")
    records, validation_records = divide(records, validation_records, dataset)
    if dataset.train_validation_data and options.save_checkpoint == "best":
        raise InvalidInputError(
            "'train_validation_data' has no use with 'save_checkpoint' best: the rows that say "
            "what is best would be learned"
        )
    require_judge(options, len(validation_records), environment.judge)
    return TrainingPlan(
        base_model=base_model,
        base_model_name=name,
        kind=kind,
        records=records,
        validation_records=validation_records,
        options=options,
        dataset=dataset,
        start=_start(options, environment, hooks),
        weights=_weights(options, environment, hooks, tunes_all_weights=tunes_all_weights),
        hooks=hooks,
        environment=environment,
    )


def _start(options: TrainingOptions, environment: Environment, hooks: TrainingHooks) -> Path | None:
    if options.start_from is None:
        return None
    return find_start(
        options.start_from, models_dir=environment.models_dir, from_request=hooks.from_request
    )


def _weights(
    options: TrainingOptions,
    environment: Environment,
    hooks: TrainingHooks,
    *,
    tunes_all_weights: bool,
) -> tuple[Path, ...]:
    if options.pretrained_weights is None:
        return ()
    if not tunes_all_weights:
        raise InvalidInputError(
            "'pretrained_weights' has no use but with full fine-tuning: an adapter belongs to the "
            "base model as its name finds it. Go on from an adapter with 'start_from'"
        )
    return find_weights(options.pretrained_weights, environment, from_request=hooks.from_request)


def seed_to_resume(checkpoint: Path | None) -> int | None:
    """The seed of the training that goes on; a drawn one must not be drawn again.

    Args:
        checkpoint: As ``tune`` takes it; None for a new training.

    Returns:
        The seed, or None for a new training.

    Raises:
        ArtifactError: If there is no whole checkpoint.
    """
    return None if checkpoint is None else read_checkpoint(find_checkpoint(checkpoint)).seed
