"""What is read of a generation config, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig, WatermarkingConfig

from luthier.errors import NotSupportedError
from luthier.inference.sampling.model_defaults import NO_DEFAULTS, ModelDefaults, model_defaults


def defaults_of(**settings: Any) -> ModelDefaults:
    return model_defaults(SimpleNamespace(generation_config=GenerationConfig(**settings)))


def test_an_empty_config_and_none_change_nothing() -> None:
    assert defaults_of() == NO_DEFAULTS
    assert model_defaults(SimpleNamespace()) == NO_DEFAULTS


def test_settings_keep_their_names_and_get_one_form() -> None:
    assert defaults_of(
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        suppress_tokens=[5, 6],
        begin_suppress_tokens=[7],
        bad_words_ids=[[1, 2], [3]],
        sequence_bias=[[[4, 5], -2.0]],
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        min_length=56,
        exponential_decay_length_penalty=(5, 1.2),
        length_penalty=2.0,
        early_stopping="never",
    ) == ModelDefaults(
        forced_bos_token_id=0,
        forced_eos_token_ids=(2,),
        suppress_tokens=(5, 6),
        begin_suppress_tokens=(7,),
        bad_words_ids=((1, 2), (3,)),
        sequence_bias=(((4, 5), -2.0),),
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        min_length=56,
        exponential_decay_length_penalty=(5, 1.2),
        length_penalty=2.0,
        early_stopping="never",
    )
    assert defaults_of(sequence_bias={(4, 5): -2.0}).sequence_bias == (((4, 5), -2.0),)


def test_ways_to_decode_are_the_requests_alone() -> None:
    ways = {"do_sample": True, "num_beams": 4, "temperature": 0.6, "top_k": 20, "max_length": 99}
    assert defaults_of(**ways) == NO_DEFAULTS


@pytest.mark.parametrize(
    "settings", [{"guidance_scale": 1.5}, {"watermarking_config": WatermarkingConfig()}]
)
def test_what_changes_every_text_and_is_not_offered_is_refused_by_name(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(NotSupportedError, match=next(iter(settings))):
        defaults_of(**settings)
