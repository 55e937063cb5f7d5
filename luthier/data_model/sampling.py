"""Sampling parameters, spelled once: every door and the engine use these names, types and defaults.

The order of the fields is the wire: it gives the field numbers of ``TextGenerationTaskRequest``,
from 2 on. New ones are only appended.
"""

from __future__ import annotations

import dataclasses
import numbers
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data_model.checks import require_bool, require_int, require_number
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

GREEDY = "GREEDY"
SAMPLING = "SAMPLING"
DECODING_METHODS = (GREEDY, SAMPLING)
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingLimits:
    """What one request may ask for. Each is a key under ``inference.limits`` of the config.

    Args:
        max_new_tokens: Largest ``max_new_tokens``.
        max_stop_sequences: Largest number of stop sequences.
        max_stop_sequence_chars: Longest stop sequence.
        max_time_seconds: Largest ``max_time``.
        max_n: Most answers to one request.
        max_beams: Largest ``num_beams``; each beam holds keys and values of its own.
    """

    max_new_tokens: int = 4096
    max_stop_sequences: int = 16
    max_stop_sequence_chars: int = 256
    max_time_seconds: float = 3600.0
    max_n: int = 16
    max_beams: int = 8


@dataclass(frozen=True)
class SamplingParams:
    """How to turn logits into text, for one request.

    Args:
        max_new_tokens: Tokens to generate at most, >= 1.
        min_new_tokens: No end-of-sequence before this many tokens; <= ``max_new_tokens``.
        truncate_input_tokens: Keep the first this many prompt tokens, special ones included; 0
            keeps all.
        decoding_method: ``GREEDY`` or ``SAMPLING``; the other choices below that only shape
            sampling (temperature, top_k, top_p, min_p, typical_p, seed) do nothing under
            ``GREEDY``.
        top_k: Sample from the k likeliest tokens; None or 0 is all.
        top_p: Nucleus mass in (0, 1].
        typical_p: Local typicality mass in (0, 1].
        temperature: > 0; None is 1.0.
        repetition_penalty: > 0; 1.0 or 0.0 is none, None what the model's generation config says.
            Prompt tokens count as repeated.
        max_time: Seconds after which generation ends with ``TIME_LIMIT``.
        exponential_decay_length_penalty: (start index, factor): the score of end-of-sequence
            grows from that many generated tokens on.
        stop_sequences: Texts that end generation, wherever token borders fall.
        seed: Makes sampling repeatable; None draws one, which the result reports.
        preserve_input_text: Give the (verbalized) prompt back before the generated text.
        input_tokens: Report the prompt's tokens.
        generated_tokens: Report the generated tokens.
        token_logprobs: Add log-probabilities to the reported tokens.
        token_ranks: Add ranks (1 = likeliest) to the reported tokens.
        include_stop_sequence: Keep the stop sequence in the text; None is True.
        min_p: Sample from the tokens at least this fraction as likely as the likeliest, in [0, 1].
        num_beams: Texts that are followed side by side; the likeliest is given. 1 is none. Only
            under ``GREEDY``. Its text comes when the search has ended.
        length_penalty: With beams, the power of its length that a text's log-probability is divided
            by: > 0 favours long texts. None is what the model says, else 1.0.
        early_stopping: With beams, end once ``num_beams`` texts are complete, though one of those
            in progress may become better. None is what the model says, else False.
        no_repeat_ngram_size: No sequence of this many tokens comes twice, the prompt's included; 0
            is no such rule, None what the model says.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    truncate_input_tokens: int = 0
    decoding_method: str = GREEDY
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    max_time: float | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    stop_sequences: tuple[str, ...] = ()
    seed: int | None = None
    preserve_input_text: bool = True
    input_tokens: bool = False
    generated_tokens: bool = False
    token_logprobs: bool = False
    token_ranks: bool = False
    include_stop_sequence: bool | None = None
    min_p: float | None = None
    num_beams: int = 1
    length_penalty: float | None = None
    early_stopping: bool | None = None
    no_repeat_ngram_size: int | None = None

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> SamplingParams:
        """Make parameters from what a caller or a wire gave; they are not validated yet.

        None means "not given". Numbers of numpy become Python's, lists tuples, and the penalty may
        be a pair or an object with ``start_index`` and ``decay_factor``.

        Args:
            arguments: Field name to value.

        Returns:
            The parameters, with defaults for what is not given.

        Raises:
            UnknownKeyError: If a name is no field, with the nearest one.
            InvalidInputError: If a value has not even the right shape.
        """
        for name in arguments:
            if name not in SAMPLING_FIELDS:
                hint = did_you_mean(name, SAMPLING_FIELDS)
                raise UnknownKeyError(f"unknown generation parameter {name!r}{hint}")
        given = {name: value for name, value in arguments.items() if value is not None}
        return cls(**{name: _plain_value(name, value) for name, value in given.items()})

    @property
    def is_sampling(self) -> bool:
        """True if tokens are drawn at random rather than taken by highest score."""
        return self.decoding_method == SAMPLING

    def several(self, n: int, limits: SamplingLimits) -> list[SamplingParams]:
        """Parameters of ``n`` answers to the same text.

        They differ in their seed alone: the first has ``seed`` (or one that is drawn), each
        following one the next number, so each answer can be had again by itself.

        Args:
            n: How many.
            limits: What one request may ask for.

        Returns:
            ``n`` parameters.

        Raises:
            InvalidInputError: If ``n`` is beyond the limit, or all answers would be the same.
        """
        require_int("n", n, minimum=1, maximum=limits.max_n)
        if n == 1:
            return [self]
        if not self.is_sampling:
            raise InvalidInputError(
                f"'n' is {n}, but {self.decoding_method} gives one answer only: "
                f"'decoding_method' must be {SAMPLING}"
            )
        first = secrets.randbits(32) if self.seed is None else self.seed
        return [
            dataclasses.replace(self, seed=(first + index) % (MAX_SEED + 1)) for index in range(n)
        ]

    def validate(self, limits: SamplingLimits) -> None:
        """Refuse what no model could do and what exceeds ``limits``.

        Args:
            limits: What one request may ask for.

        Raises:
            InvalidInputError: Naming the parameter, its value and the limit.
        """
        self._validate_lengths(limits)
        self._validate_distribution()
        self._validate_penalties()
        self._validate_beams(limits)
        self._validate_stops(limits)
        if self.seed is not None:
            require_int("seed", self.seed, minimum=0, maximum=MAX_SEED)
        for name in _FLAGS:
            if getattr(self, name) is not None:
                require_bool(name, getattr(self, name))

    def _validate_lengths(self, limits: SamplingLimits) -> None:
        require_int("min_new_tokens", self.min_new_tokens, minimum=0)
        require_int("max_new_tokens", self.max_new_tokens, minimum=1)
        if self.max_new_tokens < self.min_new_tokens:
            raise InvalidInputError(
                "Max new tokens needs to be bigger than min new tokens: "
                f"max_new_tokens is {self.max_new_tokens}, min_new_tokens {self.min_new_tokens}"
            )
        require_int("max_new_tokens", self.max_new_tokens, maximum=limits.max_new_tokens)
        require_int("truncate_input_tokens", self.truncate_input_tokens, minimum=0)
        if self.max_time is not None:
            require_number("max_time", self.max_time, above=0, maximum=limits.max_time_seconds)

    def _validate_distribution(self) -> None:
        if self.decoding_method not in DECODING_METHODS:
            raise InvalidInputError(
                f"Decoding method [{self.decoding_method}] not in valid decoding methods: "
                f"[{list(DECODING_METHODS)}]"
            )
        if self.top_k is not None:
            require_int("top_k", self.top_k, minimum=0)
        if self.top_p is not None:
            require_number("top_p", self.top_p, above=0, maximum=1)
        if self.typical_p is not None:
            require_number("typical_p", self.typical_p, above=0, maximum=1)
        if self.min_p is not None:
            require_number("min_p", self.min_p, minimum=0, maximum=1)
        if self.temperature is not None:
            # 0 means "no randomness" to many; under SAMPLING it would divide by zero.
            above = 0.0 if self.is_sampling else None
            require_number("temperature", self.temperature, minimum=0, above=above)

    def _validate_penalties(self) -> None:
        if self.no_repeat_ngram_size is not None:
            require_int("no_repeat_ngram_size", self.no_repeat_ngram_size, minimum=0)
        if self.repetition_penalty is not None:
            require_number("repetition_penalty", self.repetition_penalty, minimum=0)
        if self.exponential_decay_length_penalty is not None:
            start, factor = self.exponential_decay_length_penalty
            require_int("exponential_decay_length_penalty.start_index", start, minimum=0)
            require_number("exponential_decay_length_penalty.decay_factor", factor, above=0)

    def _validate_beams(self, limits: SamplingLimits) -> None:
        require_int("num_beams", self.num_beams, minimum=1, maximum=limits.max_beams)
        if self.num_beams > 1 and self.is_sampling:
            raise InvalidInputError(
                f"'num_beams' is {self.num_beams}, but beams are not sampled: "
                f"'decoding_method' must be {GREEDY}, got {SAMPLING}"
            )
        if self.length_penalty is not None:
            require_number("length_penalty", self.length_penalty, minimum=-100, maximum=100)

    def _validate_stops(self, limits: SamplingLimits) -> None:
        if len(self.stop_sequences) > limits.max_stop_sequences:
            raise InvalidInputError(
                f"'stop_sequences' has {len(self.stop_sequences)} entries, "
                f"at most {limits.max_stop_sequences} are allowed"
            )
        for index, stop in enumerate(self.stop_sequences):
            if not isinstance(stop, str) or not stop:
                raise InvalidInputError(f"'stop_sequences[{index}]' must be a non-empty string")
            if len(stop) > limits.max_stop_sequence_chars:
                raise InvalidInputError(
                    f"'stop_sequences[{index}]' has {len(stop)} characters, "
                    f"at most {limits.max_stop_sequence_chars} are allowed"
                )


SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))


_FLAGS = (
    "preserve_input_text",
    "input_tokens",
    "generated_tokens",
    "token_logprobs",
    "token_ranks",
    "include_stop_sequence",
    "early_stopping",
)


def _plain_value(name: str, value: Any) -> Any:
    if name == "stop_sequences":
        return _stop_sequences(value)
    if name == "exponential_decay_length_penalty":
        return _decay_penalty(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return value


def _stop_sequences(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidInputError(f"'stop_sequences' must be a list of strings, got {value!r}")
    try:
        return tuple(value)
    except TypeError as error:
        raise InvalidInputError(
            f"'stop_sequences' must be a list of strings, got {value!r}"
        ) from error


def _decay_penalty(value: Any) -> tuple[int, float]:
    if hasattr(value, "start_index") and hasattr(value, "decay_factor"):
        return (value.start_index, value.decay_factor)
    if isinstance(value, Mapping) and value and set(value) <= {"start_index", "decay_factor"}:
        # Neither field has presence on the wire: a zero that was sent looks like one that was not.
        return (value.get("start_index", 0), value.get("decay_factor", 0.0))
    if isinstance(value, tuple | list) and len(value) == 2:
        return (value[0], value[1])
    raise InvalidInputError(
        f"'exponential_decay_length_penalty' must be (start_index, decay_factor), got {value!r}"
    )
