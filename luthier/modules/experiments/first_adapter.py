"""From the options of an experiment to the adapter that its training begins with."""

from __future__ import annotations

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.initialisation import make_adapter
from luthier.adapters.prompts.source_prompt import (
    SourcePrompt,
    read_source_prompt,
    resolve_source_prompt,
)
from luthier.data_model.datasets.dataset import Dataset
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.lora_starts import LOFTQ_INIT
from luthier.data_model.options.prompt_encoder import encoder_options
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    TuningType,
    parse_init_method,
    parse_output_model_types,
)
from luthier.data_model.options.run_options import FULL_FINE_TUNING, HEAD, LORA
from luthier.errors import TrainingDataError
from luthier.modules.environment import Environment
from luthier.modules.planning.marker_tokens import (
    marker_tokens,
    require_same_markers,
)
from luthier.modules.planning.pretrained_weights import find_weights, full_weights
from luthier.modules.planning.starting_point import (
    find_start,
    read_lora_start,
    read_start,
)
from luthier.modules.text_classification.head_plan import make_head
from luthier.resources.base_model import BaseModel


def first_adapter(
    options: ExperimentOptions, base: BaseModel, dataset: Dataset, here: Environment
) -> Adapter:
    """The adapter that a training begins with: fresh, or an earlier result.

    Args:
        options: Checked; the seed is drawn.
        base: The frozen base model.
        dataset: Names the classes of a head, where the options do not.
        here: Where weights and source prompts are found.

    Returns:
        An adapter of the caller's own.

    Raises:
        LuthierError: If the base model does not take it, or what it starts from cannot be read.
    """
    start = None
    if options.training.start_from is not None:
        start = find_start(
            options.training.start_from, models_dir=here.models_dir, from_request=False
        )
    if options.general.method == HEAD:
        labels = options.head.labels or _labels_of(dataset, options.dataset)
        below = lora_below(options)
        return make_head(base, labels, lora=below, seed=options.training.seed, start=start)
    if options.general.method == LORA:
        if start is not None:
            lora = read_lora_start(start, base, options.lora)
            require_same_markers(lora, base, options.dataset)
            return lora
        seed, added = options.training.seed, marker_tokens(base, options.dataset)
        if options.lora.initialisation != LOFTQ_INIT:
            return create_lora(base.model, options.lora, seed=seed, added=added)
        with here.base_models.acquire(
            options.general.base_model, dtype=base.dtype, device=base.device
        ) as original:
            return create_lora(
                base.model, options.lora, seed=seed, original=original.model, added=added
            )
    if options.general.method == FULL_FINE_TUNING:
        named = options.training.pretrained_weights
        files = () if named is None else find_weights(named, here, from_request=False)
        return full_weights(
            base,
            files,
            is_shared_out=options.training.use_fsdp,
            added=marker_tokens(base, options.dataset),
        )
    prompt = options.tuning_config
    if start is not None:
        size = prompt.num_virtual_tokens
        return read_start(start, base, method=options.general.method, num_virtual_tokens=size)
    init_method = parse_init_method(prompt.prompt_tuning_init_method)
    source_prompt: SourcePrompt | None = None
    if init_method.needs_source:
        path = resolve_source_prompt(
            prompt.prompt_tuning_init_source_model or "",
            source_prompt_base=here.source_prompt_base,
            from_request=False,
        )
        source_prompt = read_source_prompt(path)
    tuning_type = _tuning_type(options)
    places: tuple[PromptOutputModelType, ...] = ()
    if prompt.output_model_types or not tuning_type.learns_through_a_network:
        places = parse_output_model_types(
            prompt.output_model_types, is_seq2seq=base.kind == "seq2seq"
        )
    assert prompt.num_virtual_tokens is not None  # ``validate`` has seen to it.
    return make_adapter(
        base,
        tuning_type=tuning_type,
        num_virtual_tokens=prompt.num_virtual_tokens,
        init_method=init_method,
        init_text=prompt.prompt_tuning_init_text,
        source_prompt=source_prompt,
        source_task=0,
        output_model_types=places,
        encoder=encoder_options(prompt, tuning_type),
        seed=options.training.seed,
    )


def lora_below(options: ExperimentOptions) -> LoraConfig | None:
    """What is tuned below a head, or None."""
    return options.lora if options.head.use_lora else None


def _labels_of(dataset: Dataset, options: DatasetOptions) -> tuple[str, ...]:
    """The classes of the rows, in order of the alphabet; those held out of the same file count."""
    rows = [dataset.train]
    if options.validation_strategy == "automatic":
        rows.append(dataset.validation)
    labels = tuple(sorted({record.output for part in rows for record in part}))  # type: ignore[union-attr]
    if len(labels) == 1:
        raise TrainingDataError(
            f"all rows of 'dataset.train_dataframe' have label {labels[0][:80]!r}; there is "
            "nothing to tell apart. Other classes can be named in 'head.labels'"
        )
    return labels


def _tuning_type(options: ExperimentOptions) -> TuningType:
    return TuningType(options.general.method.upper())
