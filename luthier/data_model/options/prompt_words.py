"""The words of prompt tuning: its types, how virtual tokens start and where they are put.

They are caikit-nlp's and PEFT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import TypeVar

from luthier.errors import InvalidInputError, NotSupportedError, did_you_mean

Choice = TypeVar("Choice", bound=Enum)


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


def _member(kind: type[Choice], value: object) -> Choice | None:
    """The member of ``kind`` with this name (aliases too), or None."""
    if isinstance(value, kind):
        return value
    return kind.__members__.get(value) if isinstance(value, str) else None


def _word(value: object) -> str:
    """A word from outside, cut to what a message may show."""
    text = value.value if isinstance(value, Enum) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
