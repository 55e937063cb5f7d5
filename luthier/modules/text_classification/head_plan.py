"""A head's tuning before it starts: the plan of any training, the classes, and the LoRA below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from luthier.adapters.heads.building import create_head
from luthier.adapters.heads.classification_head import ClassificationHead, require_labels
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.lora import (
    MAX_RANK,
    LoraConfig,
    LoraLimits,
)
from luthier.data_model.options.lora_starts import LOFTQ_INIT, MEASURED_INITS
from luthier.data_model.options.training_options import HEAD_TUNING_DEFAULTS, TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.data_model.streams import StreamRecord
from luthier.errors import (
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
    did_you_mean,
)
from luthier.modules.environment import Environment
from luthier.modules.planning.hooks import limits_for
from luthier.modules.planning.marker_tokens import refuse_marker_tokens
from luthier.modules.planning.starting_point import continue_lora, read_start
from luthier.modules.planning.train_plan import AdapterPlan, TrainingPlan, plan_training
from luthier.modules.text_generation.lora_plan import (
    is_lora_option,
    lora_config_of,
    refuse_unknown_options,
)
from luthier.resources.base_model import BaseModel
from luthier.training.metrics.registry import METRICS
from luthier.training.preparation import require_readable_classes

_OWN_ARGUMENTS = ("labels", "use_lora")


@dataclass(frozen=True)
class HeadTuningPlan(AdapterPlan):
    """A head's tuning that nothing known so far speaks against.

    Args:
        labels: Name of each class.
        lora: What is tuned below the head, or None. Whether the base model has such layers is known
            with its weights.
    """

    labels: tuple[str, ...]
    lora: LoraConfig | None

    def make_adapter(self, base_model: BaseModel) -> ClassificationHead:
        """The head before its first update.

        Args:
            base_model: From ``acquire``.

        Returns:
            A fresh head, or the earlier result to go on from.
        """
        return make_head(
            base_model, self.labels, lora=self.lora, seed=self.options.seed, start=self.start
        )


def make_head(
    base_model: BaseModel,
    labels: tuple[str, ...],
    *,
    lora: LoraConfig | None,
    seed: int,
    start: Path | None,
) -> ClassificationHead:
    """A head before its first update.

    Args:
        base_model: What it stands on.
        labels: Name of each class.
        lora: What is tuned below the head, or None.
        seed: Of a fresh one.
        start: Folder of an earlier result to go on from, or None.

    Returns:
        A head of the caller's own.

    Raises:
        ArtifactError: If ``start`` cannot be read.
        InvalidInputError: If it has other classes, or something else below it.
        NotSupportedError: If the base model takes no head.
    """
    if start is None:
        return create_head(base_model.model, labels, lora=lora, seed=seed)
    head = read_start(start, base_model, method=ClassificationHead.method)
    assert isinstance(head, ClassificationHead)
    if head.class_labels != labels:
        raise InvalidInputError(
            f"'start_from' tells {_listed(head.class_labels)} apart, this training "
            f"{_listed(labels)}; give 'labels' in its order"
        )
    if (head.body is None) != (lora is None):
        has = "no LoRA" if head.body is None else "a LoRA"
        raise InvalidInputError(f"'start_from' has {has} below its head; 'use_lora' differs")
    if head.body is not None and lora is not None:
        continue_lora(head.body, lora)
    return head


def require_classifiable(
    options: TrainingOptions, dataset: DatasetOptions, lora: LoraConfig | None
) -> None:
    """Refuse options that make no sense where texts are classified.

    Args:
        options: Of the loop.
        dataset: How texts are read.
        lora: What is tuned below the head, or None.

    Raises:
        InvalidInputError: Naming the option.
        NotSupportedError: For tokens of its own, or a start that looks at text.
    """
    require_readable_classes(dataset)
    refuse_marker_tokens(dataset, why="a classification reads texts without markers")
    for metric in options.metrics:
        if METRICS[metric].needs_text:
            raise InvalidInputError(
                f"'metrics' names {metric!r}, which compares generated text; a classification "
                "writes none"
            )
    if lora is not None and lora.initialisation in (LOFTQ_INIT, *MEASURED_INITS):
        raise NotSupportedError(
            f"a LoRA below a head cannot start as {lora.initialisation!r}, which asks the base "
            "model for text"
        )


def plan_head_tuning(
    arguments: Mapping[str, Any], *, module_id: str, environment: Environment
) -> HeadTuningPlan:
    """Plan a head's tuning, and read the classes; takes and raises what ``plan_training`` does."""
    refuse_unknown_options(arguments, what="a head's tuning", own=_OWN_ARGUMENTS)
    lora = _lora_below(arguments)
    common = {
        name: value
        for name, value in arguments.items()
        if name not in _OWN_ARGUMENTS and not is_lora_option(name)
    }
    plan = plan_training(
        common,
        module_id=module_id,
        defaults=HEAD_TUNING_DEFAULTS,
        environment=environment,
        reads_classes=True,
    )
    if plan.kind != "causal":
        raise NotSupportedError(
            f"classification heads stand on causal base models; {plan.base_model_name!r} is "
            f"{plan.kind}"
        )
    require_classifiable(plan.options, plan.dataset, lora)
    limits = limits_for(plan.hooks, environment)
    if lora is not None:
        lora.validate(LoraLimits(max_rank=min(MAX_RANK, limits.max_lora_rank)))
    labels = _labels_of(plan, arguments.get("labels"), max_classes=limits.max_classes)
    return HeadTuningPlan.of(
        plan,
        labels=labels,
        lora=lora,
    )


def _lora_below(arguments: Mapping[str, Any]) -> LoraConfig | None:
    lora, use_lora = lora_config_of(arguments), arguments.get("use_lora")
    if use_lora is not None and not isinstance(use_lora, bool):
        raise InvalidInputError(f"'use_lora' must be true or false, got {use_lora!r:.80}")
    if use_lora is False:
        if lora != LoraConfig():
            raise InvalidInputError(
                "'use_lora' is false and there are options of a LoRA; leave out the one or the "
                "others"
            )
        return None
    return lora


def _labels_of(plan: TrainingPlan, given: Any, *, max_classes: int) -> tuple[str, ...]:
    """The classes that were named, or those of the training data in order of the alphabet."""
    dataset = plan.dataset
    seen = {_label_of(record) for record in plan.records}
    if dataset.validation_size:  # Held out of the same rows.
        seen |= {_label_of(record) for record in plan.validation_records}
    found = tuple(sorted(seen))
    # On a wire, an empty list is a list that nobody sent.
    labels = tuple(given) if isinstance(given, list | tuple) and given else found
    if given is not None and not isinstance(given, list | tuple):
        raise InvalidInputError(f"'labels' must be a list of names, got {given!r:.80}")
    if len(labels) > max_classes:
        raise InvalidInputError(
            f"'labels' has {len(labels)} names, at most {max_classes} are allowed"
        )
    if labels is found and len(found) == 1:
        raise TrainingDataError(
            f"all {len(plan.records)} rows of train_stream have label {found[0][:80]!r}; there is "
            "nothing to tell apart. Other classes can be named in 'labels'"
        )
    require_labels(labels)
    known = set(labels)
    measured = "train_stream" if dataset.validation_size else "val_stream"
    # The rows of the latter may be among those to learn from.
    for name, records in ((measured, plan.validation_records), ("train_stream", plan.records)):
        for row, record in enumerate(records, start=1):
            label = _label_of(record)
            if label not in known:
                raise TrainingDataError(
                    f"{name}{_row_of(record, row, dataset)} has label {label[:80]!r}, which is "
                    f"none of {_listed(labels)}{did_you_mean(label[:80], labels)}"
                )
    return labels


def _row_of(record: StreamRecord, row: int, dataset: DatasetOptions) -> str:
    """Which row that is for who sent it: where some were chosen, they are numbered anew."""
    if dataset.validation_size or dataset.data_sample < 1 or dataset.train_validation_data:
        text = str(cast(GenerationTrainRecord, record).input)
        return f", the row {text[:60]!r}"
    return f" row {row}"


def _label_of(record: StreamRecord) -> str:
    # The reader makes pairs of all records, and refuses conversations.
    return str(cast(GenerationTrainRecord, record).output)


def _listed(labels: tuple[str, ...]) -> str:
    shown = ", ".join(repr(label[:40]) for label in labels[:10])
    return shown if len(labels) <= 10 else f"{shown} and {len(labels) - 10} more"
