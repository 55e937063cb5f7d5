"""The reference is the list of logits processors that transformers' ``generate`` builds itself."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

from luthier.data_model.sampling import SamplingParams
from luthier.inference.sampling.model_defaults import model_defaults
from luthier.inference.sampling.score_rules import apply_rules, rules_for
from luthier.inference.sampling.token_history import TokenHistory

VOCAB_SIZE = 53
EOS = (3, 7)
PROMPT = (5, 9, 9, 20, 5, 9)
GENERATED = [20, 5, 11, 9, 9, 20]
MAX_NEW_TOKENS = 7
BAD_WORDS = [[4], [9, 20], [5, 11, 13], [3]]
CONFIGS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition": {"repetition_penalty": 1.4},
    "ngrams": {"no_repeat_ngram_size": 2},
    "ngrams of one": {"no_repeat_ngram_size": 1},
    "long ngrams": {"no_repeat_ngram_size": 4},
    "input ngrams": {"encoder_no_repeat_ngram_size": 2},
    "input repetition": {"encoder_repetition_penalty": 1.5},
    "bad words": {"bad_words_ids": BAD_WORDS},
    "bias": {"sequence_bias": [[[9, 20], 2.5], [[8], -1.5], [[5, 11, 40, 41, 42, 43], 9.0]]},
    "suppressed": {"suppress_tokens": [1, 2, 33], "begin_suppress_tokens": [30, 31]},
    "forced ends": {"forced_bos_token_id": 17, "forced_eos_token_id": 3},
    "forced first": {"forced_bos_token_id": 17, "begin_suppress_tokens": [17, 31]},
    "several forced ends": {"forced_eos_token_id": [3, 7]},
    "min_length": {"min_length": 9},
    "min_new_tokens": {"min_new_tokens": 4},
    "decay": {"exponential_decay_length_penalty": (2, 1.3)},
    "all": {
        "repetition_penalty": 0.8,
        "encoder_repetition_penalty": 0.7,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 3,
        "bad_words_ids": BAD_WORDS,
        "sequence_bias": [[[8], 3.0]],
        "min_length": 8,
        "min_new_tokens": 3,
        "forced_bos_token_id": 17,
        "forced_eos_token_id": 3,
        "exponential_decay_length_penalty": (1, 1.2),
        "suppress_tokens": [40],
        "begin_suppress_tokens": [31],
    },
}


def scores_for(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def transformers_scores(
    settings: dict[str, Any], prior: tuple[int, ...], generated: list[int], scores: torch.Tensor
) -> torch.Tensor:
    config = GenerationConfig(max_length=len(prior) + MAX_NEW_TOKENS, **settings)
    config._eos_token_tensor = torch.tensor(EOS)
    processors = GenerationMixin._get_logits_processor(
        SimpleNamespace(
            config=SimpleNamespace(is_encoder_decoder=True),
            _merge_criteria_processor_list=lambda processors, _: processors,
        ),
        config,
        input_ids_seq_length=len(prior),
        encoder_input_ids=torch.tensor([PROMPT]),
        device="cpu",
    )
    return processors(torch.tensor([[*prior, *generated]]), scores[None].clone())[0]


@pytest.mark.parametrize("prior", [PROMPT, (1,)], ids=["after a prompt", "after one token"])
@pytest.mark.parametrize("num_generated", range(MAX_NEW_TOKENS))
@pytest.mark.parametrize("case", CONFIGS)
def test_scores_at_every_step_are_transformers(
    case: str, num_generated: int, prior: tuple[int, ...]
) -> None:
    settings, generated = CONFIGS[case], GENERATED[:num_generated]
    config = SimpleNamespace(generation_config=GenerationConfig(**settings))
    rules = rules_for(
        SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
        defaults=model_defaults(config),
        prompt_token_ids=PROMPT,
        num_prior=len(prior),
        eos_token_ids=EOS,
    )
    history = TokenHistory(prior)
    history.said(torch.device("cpu"))  # so that what is added later must be counted, too
    for token_id in generated:
        history.add(token_id)
    scores = scores_for(num_generated)
    before = scores.clone()
    ours = apply_rules(rules, scores, history)
    theirs = transformers_scores(settings, prior, generated, scores)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(scores, before), "the given scores must not change"
    if all(not rule.applies(history) for rule in rules):
        assert torch.equal(theirs, scores)


def test_a_request_goes_before_the_models_defaults() -> None:
    settings = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    defaults = model_defaults(SimpleNamespace(generation_config=GenerationConfig(**settings)))

    def rules(**sampling: Any) -> int:
        return len(
            rules_for(
                SamplingParams(**sampling),
                defaults=defaults,
                prompt_token_ids=PROMPT,
                num_prior=len(PROMPT),
                eos_token_ids=EOS,
            )
        )

    assert rules() == 2
    assert rules(repetition_penalty=1.0, no_repeat_ngram_size=0) == 0
    assert rules(repetition_penalty=0.0) == 1
    assert rules(no_repeat_ngram_size=3) == 2


def test_ids_beyond_the_scores_are_left_alone() -> None:
    settings = {"suppress_tokens": [10**6], "bad_words_ids": [[10**6]]}
    defaults = model_defaults(SimpleNamespace(generation_config=GenerationConfig(**settings)))
    rules = rules_for(
        SamplingParams(),
        defaults=defaults,
        prompt_token_ids=PROMPT,
        num_prior=len(PROMPT),
        eos_token_ids=EOS,
    )
    scores = scores_for(1)
    assert torch.equal(apply_rules(rules, scores, TokenHistory(PROMPT)), scores)
    assert not math.isinf(scores.min())
