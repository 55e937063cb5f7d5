"""What a model's generation config changes about its texts where a request says nothing.

``transformers``' ``generate`` applies these by default, so a model's authors count on them: BART
summaries begin with a forced token, Whisper never says some, Qwen is punished for repeating itself.
Settings that choose another way to decode are the request's alone: ``do_sample``, ``num_beams``,
``temperature``, ``top_k``, ``top_p``, ``max_length`` and their like are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from luthier.errors import NotSupportedError

#: A sequence of token ids, and what is added to the score of its last where the others stand.
TokenBias = tuple[tuple[int, ...], float]


@dataclass(frozen=True)
class ModelDefaults:
    """The settings, under their names in transformers; what is empty or 0 does nothing.

    Args:
        forced_bos_token_id: The first token after a single one.
        forced_eos_token_ids: One of these is the last of ``max_new_tokens``.
        suppress_tokens: Never generated.
        begin_suppress_tokens: Never generated first.
        bad_words_ids: Sequences that are never completed.
        sequence_bias: Sequences made likelier or less likely.
        repetition_penalty: Where the request has none; 1.0 is none.
        encoder_repetition_penalty: > 1 makes the input's tokens likelier.
        no_repeat_ngram_size: Where the request has none.
        encoder_no_repeat_ngram_size: No sequence of this length is taken over from the input.
        min_length: No end before this many tokens, a causal model's prompt included.
        min_new_tokens: No end before this many generated tokens.
        exponential_decay_length_penalty: Where the request has none.
        length_penalty: Of beams, where the request has none.
        early_stopping: Of beams, where the request has none; may be "never".
        renormalize_logits: Beams add up normalised scores.
    """

    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[TokenBias, ...] = ()
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False


NO_DEFAULTS = ModelDefaults()


def model_defaults(model: PreTrainedModel) -> ModelDefaults:
    """Read a model's generation config.

    Args:
        model: Any.

    Returns:
        What applies by default.

    Raises:
        NotSupportedError: If the config changes texts in a way that is not offered here.
    """
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return NO_DEFAULTS
    _refuse_unknown_ways(config)
    decay = _value(config, "exponential_decay_length_penalty", None)
    return ModelDefaults(
        forced_bos_token_id=_value(config, "forced_bos_token_id", None),
        forced_eos_token_ids=_ids(_value(config, "forced_eos_token_id", ())),
        suppress_tokens=_ids(_value(config, "suppress_tokens", ())),
        begin_suppress_tokens=_ids(_value(config, "begin_suppress_tokens", ())),
        bad_words_ids=tuple(map(tuple, _value(config, "bad_words_ids", ()))),
        sequence_bias=_biases(_value(config, "sequence_bias", ())),
        repetition_penalty=_value(config, "repetition_penalty", 1.0),
        encoder_repetition_penalty=_value(config, "encoder_repetition_penalty", 1.0),
        no_repeat_ngram_size=_value(config, "no_repeat_ngram_size", 0),
        encoder_no_repeat_ngram_size=_value(config, "encoder_no_repeat_ngram_size", 0),
        min_length=_value(config, "min_length", 0),
        min_new_tokens=_value(config, "min_new_tokens", 0),
        exponential_decay_length_penalty=None if decay is None else (decay[0], decay[1]),
        length_penalty=_value(config, "length_penalty", 1.0),
        early_stopping=_value(config, "early_stopping", False),
        renormalize_logits=_value(config, "renormalize_logits", False),
    )


def _refuse_unknown_ways(config: Any) -> None:
    changing = {
        "guidance_scale": _value(config, "guidance_scale", 1) != 1,
        "watermarking_config": getattr(config, "watermarking_config", None) is not None,
    }
    for name, is_set in changing.items():
        if is_set:
            raise NotSupportedError(
                f"the model's generation config sets {name!r}, which changes every text and is "
                "not offered; take it out of generation_config.json to serve the model without"
            )


def _value(config: Any, name: str, default: Any) -> Any:
    value = getattr(config, name, None)
    return default if value is None else value


def _ids(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _biases(value: Any) -> tuple[TokenBias, ...]:
    """A dict of tuples, or the same as the list of pairs that JSON can hold."""
    pairs = value.items() if isinstance(value, dict) else value
    return tuple((tuple(ids), float(bias)) for ids, bias in pairs)
