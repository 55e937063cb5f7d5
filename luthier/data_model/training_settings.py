"""What a train request may set beside the arguments that caikit-nlp's clients know.

Those have their own fields in the request. Everything else that a training and its data understand
is one message, ``TrainingSettings``, which is the last field of each train request and the same in
all of them. A setting that nobody sent has no value, so that the method's default counts.
"""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Optional

from caikit.core import DataObjectBase, dataobject
from py_to_proto.dataclass_to_proto import FieldNumber

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.training_options import (
    TRAINING_OPTION_ALIASES,
    TRAINING_OPTION_NAMES,
)
from luthier.data_model.records import LUTHIER_PACKAGE
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

#: The argument of ``train`` and field of a request that holds them.
SETTINGS_ARGUMENT = "training_options"
#: Options of a tuning that no request sets, and why.
NOT_ON_THE_WIRE: Mapping[str, str] = {
    "method": "each method has a request of its own",
    "output_folder": "the server's output_dir, below which a request may name its output_path",
    "run_folder": "a job has a folder of its own",
    "resume_from": "a job is resumed by its id",
    "backup_folder": "the operator says what is written where",
    "train_dataframe": "a request's train_stream, which may name files",
    "validation_dataframe": "a request's val_stream, which may name files",
    "validation_strategy": "a request has a val_stream, or says validation_size",
    **dict.fromkeys(
        (
            "prompt_column",
            "prompt_column_separator",
            "system_column",
            "answer_column",
            "id_column",
            "parent_id_column",
            "limit_chained_samples",
        ),
        "a request's records are pairs, labelled texts or whole conversations, and have no columns",
    ),
    "trackers": "the operator says where measurements are sent",
    "tracker_project": "the operator says where measurements are sent",
    "compile_model": "speed is the operator's business",
    "number_of_workers": "speed is the operator's business",
    "max_tokens_in_memory": "memory and disk are the operator's business",
    "tokenization_cache": "memory and disk are the operator's business",
    "max_tokenization_cache_bytes": "memory and disk are the operator's business",
}
#: What a request without the setting means, where a file without it means something else: rows
#: are held out of a request's only if it says so.
DEFAULTS_OF_REQUESTS: Mapping[str, Any] = {"validation_size": 0.0}
#: Options of the loop with fields of their own in the requests that caikit-nlp's clients know.
ARGUMENTS_OF_THEIR_OWN = (
    "num_epochs",
    "learning_rate",
    "batch_size",
    "accumulate_steps",
    "max_source_length",
    "max_target_length",
    "seed",
    "verbalizer",
    "torch_dtype",
    "device",
    "silence_progress_bars",
)


# NOTE: numbers are in clients: append, never renumber.
@dataobject(package=LUTHIER_PACKAGE)
class TrainingSettings(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """Fields of ``TrainingOptions`` and ``DatasetOptions`` under their names there."""

    schedule: Annotated[Optional[str], FieldNumber(1)] = None
    warmup_steps: Annotated[Optional[int], FieldNumber(2)] = None
    warmup_ratio: Annotated[Optional[float], FieldNumber(3)] = None
    warmup_epochs: Annotated[Optional[float], FieldNumber(4)] = None
    min_learning_rate_ratio: Annotated[Optional[float], FieldNumber(5)] = None
    weight_decay: Annotated[Optional[float], FieldNumber(6)] = None
    optimizer: Annotated[Optional[str], FieldNumber(7)] = None
    momentum: Annotated[Optional[float], FieldNumber(8)] = None
    adam_beta1: Annotated[Optional[float], FieldNumber(9)] = None
    adam_beta2: Annotated[Optional[float], FieldNumber(10)] = None
    adam_epsilon: Annotated[Optional[float], FieldNumber(11)] = None
    max_grad_norm: Annotated[Optional[float], FieldNumber(12)] = None
    gradient_checkpointing: Annotated[Optional[bool], FieldNumber(13)] = None
    group_by_length: Annotated[Optional[bool], FieldNumber(14)] = None
    base_dropout: Annotated[Optional[bool], FieldNumber(15)] = None
    loss_function: Annotated[Optional[str], FieldNumber(16)] = None
    freeze_layers: Annotated[Optional[list[str]], FieldNumber(17)] = None
    differential_learning_rate_layers: Annotated[Optional[list[str]], FieldNumber(18)] = None
    differential_learning_rate: Annotated[Optional[float], FieldNumber(19)] = None
    evaluation_epochs: Annotated[Optional[float], FieldNumber(20)] = None
    evaluate_before_training: Annotated[Optional[bool], FieldNumber(21)] = None
    metrics: Annotated[Optional[list[str]], FieldNumber(22)] = None
    max_generated_tokens: Annotated[Optional[int], FieldNumber(23)] = None
    early_stopping_patience: Annotated[Optional[int], FieldNumber(24)] = None
    save_checkpoint: Annotated[Optional[str], FieldNumber(25)] = None
    save_every_steps: Annotated[Optional[int], FieldNumber(26)] = None
    keep_checkpoints: Annotated[Optional[int], FieldNumber(27)] = None
    prompt_format: Annotated[Optional[str], FieldNumber(28)] = None
    chat_template: Annotated[Optional[str], FieldNumber(29)] = None
    text_system_start: Annotated[Optional[str], FieldNumber(30)] = None
    text_prompt_start: Annotated[Optional[str], FieldNumber(31)] = None
    text_answer_separator: Annotated[Optional[str], FieldNumber(32)] = None
    add_eos_token_to_system: Annotated[Optional[bool], FieldNumber(33)] = None
    add_eos_token_to_prompt: Annotated[Optional[bool], FieldNumber(34)] = None
    add_eos_token_to_answer: Annotated[Optional[bool], FieldNumber(35)] = None
    mask_prompt_labels: Annotated[Optional[bool], FieldNumber(36)] = None
    only_last_answer: Annotated[Optional[bool], FieldNumber(37)] = None
    max_length: Annotated[Optional[int], FieldNumber(38)] = None
    padding_quantile: Annotated[Optional[float], FieldNumber(39)] = None
    token_mask_probability: Annotated[Optional[float], FieldNumber(40)] = None
    skip_parent_probability: Annotated[Optional[float], FieldNumber(41)] = None
    random_parent_probability: Annotated[Optional[float], FieldNumber(42)] = None
    neftune_noise_alpha: Annotated[Optional[float], FieldNumber(43)] = None
    mixed_precision: Annotated[Optional[str], FieldNumber(44)] = None
    quantization: Annotated[Optional[str], FieldNumber(45)] = None
    serve_quantized: Annotated[Optional[bool], FieldNumber(46)] = None
    start_from: Annotated[Optional[str], FieldNumber(47)] = None
    judge_model: Annotated[Optional[str], FieldNumber(48)] = None
    judge_template: Annotated[Optional[str], FieldNumber(49)] = None
    num_processes: Annotated[Optional[int], FieldNumber(50)] = None
    use_fsdp: Annotated[Optional[bool], FieldNumber(51)] = None
    save_every_seconds: Annotated[Optional[float], FieldNumber(52)] = None
    checkpoint_time_share: Annotated[Optional[float], FieldNumber(53)] = None
    intermediate_dropout: Annotated[Optional[float], FieldNumber(54)] = None
    max_length_prompt: Annotated[Optional[int], FieldNumber(55)] = None
    max_length_answer: Annotated[Optional[int], FieldNumber(56)] = None
    pretrained_weights: Annotated[Optional[str], FieldNumber(57)] = None
    personalize: Annotated[Optional[bool], FieldNumber(58)] = None
    chatbot_name: Annotated[Optional[str], FieldNumber(59)] = None
    chatbot_author: Annotated[Optional[str], FieldNumber(60)] = None
    validation_size: Annotated[Optional[float], FieldNumber(61)] = None
    data_sample: Annotated[Optional[float], FieldNumber(62)] = None
    data_sample_choice: Annotated[Optional[list[str]], FieldNumber(63)] = None
    split_seed: Annotated[Optional[int], FieldNumber(64)] = None
    train_validation_data: Annotated[Optional[bool], FieldNumber(65)] = None
    add_prompt_answer_tokens: Annotated[Optional[bool], FieldNumber(66)] = None

    @classmethod
    def from_proto(cls, proto: Any) -> "TrainingSettings":
        """The message with what it sets alone; caikit would fill in zeros.

        Args:
            proto: The message.

        Returns:
            The settings.
        """
        return cls(
            **{
                field.name: list(value) if field.is_repeated else value
                for field, value in proto.ListFields()
            }
        )


def given_settings(settings: object) -> dict[str, Any]:
    """What is set, by name.

    Args:
        settings: A ``TrainingSettings``, a mapping of names to values, or None. A mapping may use
            other names of an option, and set what no request does.

    Returns:
        Name of an option of ours to value; without what is None, and without empty lists.

    Raises:
        InvalidInputError: If it is something else, or an option is given under two names.
        UnknownKeyError: For a name that no setting has, with the nearest known one.
    """
    if settings is None:
        return {}
    if isinstance(settings, TrainingSettings):
        settings = {name: getattr(settings, name) for name in TrainingSettings.fields}
    if not isinstance(settings, Mapping):
        raise InvalidInputError(
            f"'{SETTINGS_ARGUMENT}' must be a TrainingSettings or a mapping, "
            f"got {type(settings).__name__}"
        )
    given: dict[str, Any] = {}
    for name, value in settings.items():
        option = _option(name)
        if value is None or value == []:
            continue
        if option in given:
            raise InvalidInputError(f"'{SETTINGS_ARGUMENT}' gives {option!r} under two names")
        given[option] = value
    return given


def is_dataset_option(name: str) -> bool:
    """Whether an option is of the data, not of the loop."""
    return name in _DATASET_OPTIONS


_DATASET_OPTIONS = frozenset(field.name for field in dataclasses.fields(DatasetOptions))


def _option(name: object) -> str:
    text = str(name)
    option = TRAINING_OPTION_ALIASES.get(text, text)
    known = (*TRAINING_OPTION_NAMES, *TRAINING_OPTION_ALIASES, *TrainingSettings.fields)
    if option not in known:
        raise UnknownKeyError(
            f"unknown key '{SETTINGS_ARGUMENT}.{text[:80]}'{did_you_mean(text[:80], known)}"
        )
    return option
