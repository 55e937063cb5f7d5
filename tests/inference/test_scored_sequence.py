from __future__ import annotations

import pytest
import torch

from luthier.errors import EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import ClassificationRequest, FinishReason
from luthier.inference.prompts import prepare_prompt
from luthier.inference.scored_sequence import ScoredSequence, require_head_fits
from luthier.resources.base_model import BaseModel

HEAD = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])


def sequence_of(base_model: BaseModel, head: torch.Tensor = HEAD) -> ScoredSequence:
    request = ClassificationRequest((5, 6, 7), head)
    return ScoredSequence(request, prompt=prepare_prompt(base_model, request))


def test_scores_are_the_heads_product_with_the_state_and_end_the_row(
    causal_base: BaseModel,
) -> None:
    sequence = sequence_of(causal_base)
    assert sequence.is_scored and not sequence.is_finished
    chunk = sequence.score(torch.tensor([2.0, 1.0]))
    assert chunk.scores == (4.0, -1.0, 6.5)
    assert (chunk.finish_reason, chunk.input_token_count) == (FinishReason.MAX_TOKENS, 3)
    assert sequence.is_finished


def test_a_state_in_half_precision_is_multiplied_in_full(causal_base: BaseModel) -> None:
    head = torch.tensor([[1.0001, 0.0]])
    chunk = sequence_of(causal_base, head).score(torch.tensor([1.0, 0.0], dtype=torch.bfloat16))
    assert chunk.scores == pytest.approx((1.0001,), abs=1e-6)


@pytest.mark.parametrize("state", [[float("nan"), 0.0], [float("inf"), 1.0]])
def test_scores_that_are_no_numbers_are_an_error(
    causal_base: BaseModel, state: list[float]
) -> None:
    with pytest.raises(EngineError, match="of 3 scores that are not finite"):
        sequence_of(causal_base).score(torch.tensor(state))


def test_a_row_that_is_scored_generates_nothing(causal_base: BaseModel) -> None:
    sequence = sequence_of(causal_base)
    assert (sequence.max_new_tokens, sequence.num_unreported_prompt) == (0, 0)
    assert not sequence.is_overdue
    chunk = sequence.end(FinishReason.CANCELLED)
    assert (chunk.scores, chunk.text, chunk.is_last) == ((), "", True)


def test_only_a_head_of_the_right_width_fits(
    causal_base: BaseModel, seq2seq_base: BaseModel
) -> None:
    fitting = torch.zeros(3, causal_base.hidden_size)
    require_head_fits(causal_base, fitting)
    for head in (fitting[:, 1:], fitting[0], fitting[:0], fitting.int()):
        with pytest.raises(InvalidInputError, match="classification head must be"):
            require_head_fits(causal_base, head)
    with pytest.raises(NotSupportedError, match="causal"):
        require_head_fits(seq2seq_base, torch.zeros(3, seq2seq_base.hidden_size))
