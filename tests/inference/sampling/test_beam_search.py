"""The reference is trying every text; that whole searches equal transformers' ``generate`` is
tested with models in ``test_engine_contract.py``."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineError
from luthier.inference.sampling.beam_search import BeamSearch

EOS = 0
VOCAB_SIZE = 5


def logits_after(token_ids: tuple[int, ...]) -> torch.Tensor:
    """A model: any text has logits of its own."""
    seed = sum((token_id + 1) * 7**place for place, token_id in enumerate(token_ids))
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def search(num_beams: int, *, max_tokens: int = 4, **sampling: Any) -> BeamSearch:
    """A finished search over that model."""
    made = BeamSearch(
        SamplingParams(num_beams=num_beams, max_new_tokens=max_tokens, **sampling),
        prior_token_ids=(3,),
        prompt_token_ids=(3,),
        eos_token_ids=(EOS,),
        max_tokens=max_tokens,
    )
    made.advance(logits_after(())[None])
    texts: list[tuple[int, ...]] = [()]
    while not made.is_done:
        texts = [
            (*texts[source], token_id)
            for source, token_id in zip(made.sources, made.token_ids, strict=True)
        ]
        made.advance(torch.stack([logits_after(text) for text in texts]))
    return made


def logprobs_of(text: tuple[int, ...]) -> list[float]:
    return [
        float(logits_after(text[:place]).log_softmax(-1)[token_id])
        for place, token_id in enumerate(text)
    ]


def best_of_all_texts(max_tokens: int, length_penalty: float) -> list[int]:
    texts = {
        text[: text.index(EOS) + 1] if EOS in text else text
        for text in itertools.product(range(VOCAB_SIZE), repeat=max_tokens)
    }
    return list(max(texts, key=lambda text: sum(logprobs_of(text)) / len(text) ** length_penalty))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("max_tokens", [1, 2, 4])
def test_enough_beams_find_the_best_of_all_texts(max_tokens: int, length_penalty: float) -> None:
    # So many that none is dropped, and no text that ends is beyond the first num_beams.
    found = search(2 * VOCAB_SIZE**3, max_tokens=max_tokens, length_penalty=length_penalty).best
    assert found.token_ids == best_of_all_texts(max_tokens, length_penalty)


def test_tokens_are_measured_under_the_models_own_logits_where_asked() -> None:
    found = search(3, token_logprobs=True, repetition_penalty=1.5).best
    text = tuple(found.token_ids)
    assert [pair[0] for pair in found.measured] == pytest.approx(logprobs_of(text), abs=1e-5)
    ranks = [
        1 + int((logits_after(text[:place]) > logits_after(text[:place])[token_id]).sum())
        for place, token_id in enumerate(text)
    ]
    assert [pair[1] for pair in found.measured] == ranks
    assert search(3).best.measured == ()


def test_rules_follow_each_text_by_itself() -> None:
    found = search(4, max_tokens=6, no_repeat_ngram_size=1).best
    text = [3, *found.token_ids]
    assert len(set(text)) == len(text)


def test_a_search_out_of_time_gives_the_best_so_far_and_says_so() -> None:
    made = BeamSearch(
        SamplingParams(num_beams=2),
        prior_token_ids=(),
        prompt_token_ids=(),
        eos_token_ids=(EOS,),
        max_tokens=20,
    )
    made.advance(logits_after(())[None], is_overdue=True)
    assert made.is_done
    assert made.was_cut
    assert made.best.token_ids == [int(logits_after(()).argmax())]
    assert not search(2).was_cut


def test_logits_that_are_not_finite_are_refused() -> None:
    made = BeamSearch(
        SamplingParams(num_beams=2),
        prior_token_ids=(),
        prompt_token_ids=(),
        eos_token_ids=(EOS,),
        max_tokens=20,
    )
    with pytest.raises(EngineError, match="no usable score for token 1"):
        made.advance(torch.full((1, VOCAB_SIZE), float("nan")))
