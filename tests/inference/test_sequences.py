from __future__ import annotations

from typing import Any

import torch

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import FinishReason, GenerationRequest
from luthier.inference.prompts import prepare_prompt
from luthier.inference.sequences import GeneratedSequence, Vocabulary
from luthier.resources.base_model import BaseModel


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def sequence_of(base: BaseModel, clock: Clock | None = None, **sampling: Any) -> GeneratedSequence:
    request = GenerationRequest((5, 6), SamplingParams(**{"max_new_tokens": 50, **sampling}))
    return GeneratedSequence(
        request,
        prompt=prepare_prompt(base, request),
        vocabulary=Vocabulary(base.tokenizer, frozenset(base.eos_token_ids)),
        prior_token_ids=request.input_ids,
        clock=clock or Clock(),
    )


def logits_for(token_id: int) -> torch.Tensor:
    return torch.zeros(400).index_fill(0, torch.tensor([token_id]), 9.0)


def test_time_runs_from_the_making_of_the_sequence(causal_base: BaseModel) -> None:
    clock = Clock()
    sequence = sequence_of(causal_base, clock, max_time=2.0)
    clock.now += 1.9
    assert sequence.advance(logits_for(50)).finish_reason is FinishReason.NOT_FINISHED
    clock.now += 0.2
    assert sequence.is_overdue
    assert sequence.advance(logits_for(51)).finish_reason is FinishReason.TIME_LIMIT
    assert sequence.token_ids == [50, 51]


def test_a_row_that_ends_without_a_token_gives_out_what_was_held_back(
    causal_base: BaseModel,
) -> None:
    (first, *_) = causal_base.tokenizer.encode("🎻", add_special_tokens=False)
    sequence = sequence_of(causal_base)
    assert sequence.advance(logits_for(first)).text == ""
    last = sequence.end(FinishReason.CANCELLED)
    assert last.text == causal_base.tokenizer.decode([first])
    assert last.tokens == ()
    assert last.generated_token_count == 1


def test_max_tokens_wins_over_a_full_context_and_eos_over_both(causal_base: BaseModel) -> None:
    (eos,) = causal_base.eos_token_ids
    assert sequence_of(causal_base, max_new_tokens=1).advance(logits_for(50)).finish_reason is (
        FinishReason.MAX_TOKENS
    )
    assert sequence_of(causal_base, max_new_tokens=1).advance(logits_for(eos)).finish_reason is (
        FinishReason.EOS_TOKEN
    )


def test_a_stop_sequence_in_the_last_token_wins_over_max_tokens(causal_base: BaseModel) -> None:
    (dot,) = causal_base.tokenizer.encode(".", add_special_tokens=False)
    sequence = sequence_of(causal_base, max_new_tokens=1, stop_sequences=(".",))
    assert sequence.advance(logits_for(dot)).finish_reason is FinishReason.STOP_SEQUENCE


def test_a_choice_made_for_many_rows_is_taken_as_it_is(causal_base: BaseModel) -> None:
    sequence = sequence_of(causal_base, token_ranks=True)
    chunk = sequence.advance(logits_for(50), best=(50, 1.0))
    assert [(token.token_id, token.rank) for token in chunk.tokens] == [(50, 1)]


def test_the_prompt_is_reported_once(causal_base: BaseModel) -> None:
    sequence = sequence_of(causal_base, input_tokens=True)
    assert not sequence.wants_prompt_logits
    assert [token.token_id for token in sequence.advance(logits_for(50)).input_tokens] == [5, 6]
    assert sequence.advance(logits_for(50)).input_tokens == ()
