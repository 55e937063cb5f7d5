"""The request fields of text generation, given to caikit without typing them twice.

caikit makes the protobuf messages from the signatures of the modules' methods. ``SamplingParams``
spells name, order and default of every field; this file adds the type each has on the wire and puts
both on ``run`` and ``run_stream_out``.
"""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

import numpy as np

from luthier.data_model.generation import ExponentialDecayLengthPenalty
from luthier.data_model.sampling import SAMPLING_FIELDS, SamplingParams
from luthier.errors import InvalidInputError

Result = TypeVar("Result")

# caikit takes the first member that has a protobuf type; the tuple is for Python callers.
_DecayPenalty = Union[ExponentialDecayLengthPenalty, tuple[int, float]]

#: Wire types in Python's words: int is int64, float is double, np.uint64 is uint64.
_WIRE_TYPES: dict[str, Any] = {
    "max_new_tokens": int,
    "min_new_tokens": int,
    "truncate_input_tokens": int,
    "decoding_method": str,
    "top_k": int,
    "top_p": float,
    "typical_p": float,
    "temperature": float,
    "repetition_penalty": float,
    "max_time": float,
    "exponential_decay_length_penalty": _DecayPenalty,
    "stop_sequences": list[str],
    "seed": np.uint64,
    "preserve_input_text": bool,
    "input_tokens": bool,
    "generated_tokens": bool,
    "token_logprobs": bool,
    "token_ranks": bool,
    "include_stop_sequence": bool,
    "min_p": float,
    "num_beams": int,
    "length_penalty": float,
    "early_stopping": bool,
    "no_repeat_ngram_size": int,
}


def with_sampling_parameters(
    method: Callable[[Any, str, SamplingParams], Result],
) -> Callable[..., Result]:
    """Turn ``method(self, text, sampling)`` into ``method(self, text, max_new_tokens=20, ...)``.

    Args:
        method: Takes the text and the parameters as one object. Its annotations must be types, not
            strings.

    Returns:
        A function that takes each field of SamplingParams by name (or position), shows all of them
        in its signature, and refuses names that are no field.
    """

    @functools.wraps(method)
    def with_fields(self: Any, text: str, *positional: Any, **named: Any) -> Result:
        return method(self, text, SamplingParams.from_arguments(_by_name(positional, named)))

    own = inspect.signature(method)
    receiver, text, _ = own.parameters.values()
    with_fields.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[receiver, text, *_sampling_parameters()]
    )
    return with_fields


def _by_name(positional: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    if len(positional) > len(SAMPLING_FIELDS):
        raise InvalidInputError(
            f"{len(positional)} positional generation parameters given, "
            f"there are {len(SAMPLING_FIELDS)}"
        )
    arguments = dict(zip(SAMPLING_FIELDS, positional, strict=False))
    twice = sorted(arguments.keys() & named.keys())
    if twice:
        raise InvalidInputError(f"generation parameter {twice[0]!r} is given twice")
    return arguments | named


def _sampling_parameters() -> list[inspect.Parameter]:
    """One parameter per field, in the order of the wire."""
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=_wire_default(field.default),
            annotation=_annotation(field),
        )
        for field in dataclasses.fields(SamplingParams)
    ]


def _wire_default(default: Any) -> Any:
    """None where the object has an empty tuple: protobuf has no default for a repeated field."""
    return None if default == () else default


def _annotation(field: "dataclasses.Field[Any]") -> Any:
    wire_type = _WIRE_TYPES[field.name]
    return Optional[wire_type] if _wire_default(field.default) is None else wire_type
