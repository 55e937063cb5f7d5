"""What a tuning request says about its method: the prompt's size, its start, where it goes.

The hyperparameters of the loop are in ``training_options.py`` and offered here too, so that one
import serves whoever builds a training.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, StrEnum
from typing import Annotated, TypeVar

from caikit.core import DataObjectBase, dataobject
from py_to_proto.dataclass_to_proto import FieldNumber

from luthier.data_model.checks import require_int, require_text
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.prompt_encoder import DEFAULT_NUM_LAYERS, MLP, PromptEncoderOptions
from luthier.data_model.options.setting import MAX_TEXT_CHARS
from luthier.data_model.options.training_options import (
    FULL_FINE_TUNING_DEFAULTS,
    PROMPT_TUNING_DEFAULTS,
    TrainingOptions,
)
from luthier.data_model.records import CAIKIT_NLP_PACKAGE
from luthier.errors import InvalidInputError, NotSupportedError, did_you_mean

__all__ = [
    "FULL_FINE_TUNING_DEFAULTS",
    "NETWORK_PROMPT_DEFAULTS",
    "PROMPT_TUNING_DEFAULTS",
    "PromptEncoderOptions",
    "PromptOutputModelType",
    "PromptTuningInit",
    "TrainingLimits",
    "TrainingOptions",
    "TuningConfig",
    "TuningType",
    "encoder_options",
    "parse_init_method",
    "parse_output_model_types",
    "parse_tuning_type",
    "validate_tuning_config",
]

Choice = TypeVar("Choice", bound=Enum)


#: For P-tuning and prefix tuning: what moves one virtual token by 0.3 breaks a network.
NETWORK_PROMPT_DEFAULTS = replace(PROMPT_TUNING_DEFAULTS, learning_rate=0.01)


class TuningType(StrEnum):
    """How weights change, by caikit-nlp's words."""

    PROMPT_TUNING = "PROMPT_TUNING"
    MULTITASK_PROMPT_TUNING = "MULTITASK_PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"

    @property
    def learns_through_a_network(self) -> bool:
        """True for the types that ``PromptEncoderOptions`` have a say in."""
        return self in (TuningType.P_TUNING, TuningType.PREFIX_TUNING)


class PromptTuningInit(StrEnum):
    """Where the virtual tokens start.

    ``AVERAGE_SOURCE_TASKS`` is PEFT's and caikit-nlp's spelling of ``AVERAGE_SOURCE``; both are
    the same member.
    """

    RANDOM = "RANDOM"
    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"
    AVERAGE_SOURCE = "AVERAGE_SOURCE"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"

    @property
    def needs_source(self) -> bool:
        """True for the methods that start from a source prompt."""
        return self in _SOURCE_INITS


_SOURCE_INITS = frozenset(
    {
        PromptTuningInit.ONLY_SOURCE_SHARED,
        PromptTuningInit.AVERAGE_SOURCE,
        PromptTuningInit.EXACT_SOURCE_TASK,
    }
)


class PromptOutputModelType(StrEnum):
    """Before which stack of the base model virtual tokens are put."""

    ENCODER = "ENCODER"
    DECODER = "DECODER"


@dataobject(package=CAIKIT_NLP_PACKAGE)
class TuningConfig(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """The prompt of a prompt tuning, as caikit-nlp's clients send it."""

    num_virtual_tokens: Annotated[int, FieldNumber(1)]
    prompt_tuning_init_text: Annotated[str, FieldNumber(2)]
    prompt_tuning_init_method: Annotated[str, FieldNumber(3)]
    prompt_tuning_init_source_model: Annotated[str, FieldNumber(4)]
    output_model_types: Annotated[list[str], FieldNumber(5)]
    # Luthier's, for P_TUNING and PREFIX_TUNING; see ``PromptEncoderOptions``.
    encoder_reparameterization_type: Annotated[str, FieldNumber(6)]
    encoder_hidden_size: Annotated[int, FieldNumber(7)]
    encoder_num_layers: Annotated[int, FieldNumber(8)]
    encoder_dropout: Annotated[float, FieldNumber(9)]
    prefix_projection: Annotated[bool, FieldNumber(10)]


#: Field of ``TuningConfig`` -> field of ``PromptEncoderOptions``.
ENCODER_FIELDS = {
    "encoder_reparameterization_type": "reparameterization_type",
    "encoder_hidden_size": "hidden_size",
    "encoder_num_layers": "num_layers",
    "encoder_dropout": "dropout",
    "prefix_projection": "prefix_projection",
}


def parse_tuning_type(value: str | TuningType | None) -> TuningType:
    """A tuning type by its word; None or "" is prompt tuning.

    Args:
        value: The word, in capitals, or the member itself.

    Returns:
        The member.

    Raises:
        NotSupportedError: If there is no such tuning type here.
    """
    if value is None or value == "":
        return TuningType.PROMPT_TUNING
    found = _member(TuningType, value)
    if found is None:
        known = did_you_mean(str(value), TuningType.__members__)
        raise NotSupportedError(
            f"{_word(value)} tuning type not supported!{known} "
            f"(known: {', '.join(TuningType.__members__)})"
        )
    return found


def parse_init_method(value: str | PromptTuningInit | None) -> PromptTuningInit:
    """An initialisation method by its word; None or "" is RANDOM.

    Args:
        value: The word, in capitals, or the member itself.

    Returns:
        The member.

    Raises:
        InvalidInputError: If there is no such method.
    """
    if value is None or value == "":
        return PromptTuningInit.RANDOM
    found = _member(PromptTuningInit, value)
    if found is None:
        raise InvalidInputError(
            f"Init method [{_word(value)}] not in allowed init methods: "
            f"[{list(PromptTuningInit.__members__)}]"
        )
    return found


def parse_output_model_types(
    values: Sequence[str | PromptOutputModelType] | None, *, is_seq2seq: bool
) -> tuple[PromptOutputModelType, ...]:
    """Where virtual tokens go: ENCODER before DECODER, each once.

    Args:
        values: Words or members; None or empty takes the default of the kind of base model.
        is_seq2seq: True allows ENCODER, DECODER or both (default ENCODER); False only DECODER.

    Returns:
        At least one member, without repeats.

    Raises:
        InvalidInputError: For an unknown word, or one that the base model has no stack for.
    """
    if not values:
        default = PromptOutputModelType.ENCODER if is_seq2seq else PromptOutputModelType.DECODER
        return (default,)
    if isinstance(values, str):
        raise InvalidInputError(f"'output_model_types' must be a list, got {_word(values)!r}")
    wanted = set()
    for value in values:
        found = _member(PromptOutputModelType, value)
        if found is None:
            raise InvalidInputError(
                f"{_word(value)!r} is not a valid PromptOutputModelType "
                f"(known: {', '.join(PromptOutputModelType.__members__)})"
            )
        wanted.add(found)
    if not is_seq2seq and PromptOutputModelType.ENCODER in wanted:
        raise InvalidInputError(
            f"{sorted(found.value for found in wanted)} not supported for base model type causal: "
            "it has no encoder, use ['DECODER']"
        )
    return tuple(member for member in PromptOutputModelType if member in wanted)


def encoder_options(config: object, tuning_type: TuningType) -> PromptEncoderOptions:
    """The network that a prompt is to be learned through.

    Args:
        config: A ``TuningConfig`` or whatever has its fields; on a wire, 0 and "" are not given.
        tuning_type: How the prompt is tuned.

    Returns:
        The options, checked.

    Raises:
        InvalidInputError: For a value that cannot be meant, or one that has no use with this
            tuning type.
    """
    given = {name: value for name in ENCODER_FIELDS if (value := getattr(config, name, None))}
    default = {"encoder_reparameterization_type": MLP, "encoder_num_layers": DEFAULT_NUM_LAYERS}
    is_prefix = tuning_type is TuningType.PREFIX_TUNING
    for name, value in given.items():
        has_use = (name == "prefix_projection") == is_prefix or (
            is_prefix and name == "encoder_hidden_size" and bool(given.get("prefix_projection"))
        )
        if value != default.get(name) and not (tuning_type.learns_through_a_network and has_use):
            raise InvalidInputError(
                f"'tuning_config.{name}' has no use with tuning type {tuning_type.value}"
                + (" without 'prefix_projection'" if is_prefix else "")
            )
    options = PromptEncoderOptions(**{ENCODER_FIELDS[name]: given[name] for name in given})
    options.validate()
    return options


def validate_tuning_config(config: TuningConfig, limits: TrainingLimits) -> None:
    """Refuse what no base model could satisfy. Whether a source prompt fits is known later.

    Args:
        config: As the request brought it.
        limits: The server's caps.

    Raises:
        InvalidInputError: Naming the field of ``tuning_config``, its value and the limit.
    """
    if not config.num_virtual_tokens:
        raise InvalidInputError("num_virtual_tokens not provided in tuning_config")
    require_int(
        "tuning_config.num_virtual_tokens",
        config.num_virtual_tokens,
        minimum=1,
        maximum=limits.max_virtual_tokens,
    )
    method = parse_init_method(config.prompt_tuning_init_method)
    if method is PromptTuningInit.TEXT:
        if not config.prompt_tuning_init_text:
            raise InvalidInputError(
                "'tuning_config.prompt_tuning_init_text' must be given "
                "when prompt_tuning_init_method is TEXT"
            )
        require_text(
            "tuning_config.prompt_tuning_init_text",
            config.prompt_tuning_init_text,
            max_chars=MAX_TEXT_CHARS,
        )
    if method.needs_source and not config.prompt_tuning_init_source_model:
        raise InvalidInputError(
            "'tuning_config.prompt_tuning_init_source_model' must be given "
            f"when prompt_tuning_init_method is {method.value}"
        )


def _member(kind: type[Choice], value: object) -> Choice | None:
    """The member of ``kind`` with this name (aliases too), or None."""
    if isinstance(value, kind):
        return value
    return kind.__members__.get(value) if isinstance(value, str) else None


def _word(value: object) -> str:
    """A word from outside, cut to what a message may show."""
    text = value.value if isinstance(value, Enum) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
