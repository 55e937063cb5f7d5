"""One answer from an engine's chunks: whole or in pieces, it is the same text."""

from __future__ import annotations

import pytest

from luthier.data_model.generation import ProducerId
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import FinishReason, GenerationChunk, Token
from luthier.modules.text_generation.growing_answer import GrowingAnswer
from luthier.modules.text_generation.text_joining import TextJoiner

CHUNKS = [
    GenerationChunk("", tokens=(Token(5, "▁a", -0.5, 1),), input_tokens=(Token(7, "x"),)),
    GenerationChunk(" a", tokens=(Token(6, "b", -1.5, 2),), generated_token_count=2),
    GenerationChunk("b", finish_reason=FinishReason.MAX_TOKENS, generated_token_count=2, seed=9),
]


class Stream(list):
    """A stream that notes whether it was given up."""

    is_cancelled = False

    def cancel(self):
        self.is_cancelled = True


def answer(prompt_text="", **sampling):
    return GrowingAnswer(
        stream=Stream(CHUNKS),
        sampling=SamplingParams(**sampling),
        prompt_text=prompt_text,
        prompt_tokens=3,
        producer_id=ProducerId(name="n", version="1"),
        joiner=TextJoiner(restores_space=False, cleans_up_spaces=False),
    )


def whole(growing):
    for chunk in growing.stream:
        growing.add(chunk)
    return growing.result()


@pytest.mark.parametrize("prompt_text", ["", "the prompt"])
def test_the_pieces_joined_are_the_whole_text(prompt_text):
    result = whole(answer(prompt_text))
    pieces = list(answer(prompt_text).pieces())
    assert "".join(piece.generated_text for piece in pieces) == result.generated_text
    assert result.generated_text == prompt_text + " ab"
    assert (result.generated_tokens, result.seed) == (2, 9)
    assert result.finish_reason.name == pieces[-1].details.finish_reason.name == "MAX_TOKENS"
    assert pieces[0].details.input_token_count in (0, 3)


def test_chunks_without_news_are_no_pieces():
    texts = [piece.generated_text for piece in answer().pieces()]
    assert texts == ["", " a", "b"], "the first one carries the prompt's tokens"
    assert len(list(answer(generated_tokens=True).pieces())) == 3


def test_tokens_are_told_only_if_asked_for():
    assert whole(answer()).tokens is None
    told = whole(answer(generated_tokens=True, token_logprobs=True)).tokens
    assert [(token.text, token.logprob) for token in told] == [("▁a", -0.5), ("b", -1.5)]
    only_input = whole(answer(input_tokens=True, token_ranks=True))
    assert only_input.tokens is None and [t.text for t in only_input.input_tokens] == ["x"]


def test_leaving_the_pieces_early_frees_the_row():
    growing = answer()
    pieces = growing.pieces()
    next(pieces)
    pieces.close()
    assert growing.stream.is_cancelled
