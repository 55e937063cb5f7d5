"""One request's answer, from the chunks of an engine to the results of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    GeneratedToken,
    ProducerId,
    TokenStreamDetails,
    WireFinishReason,
)
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationChunk, TokenStream
from luthier.inference.base import Token as EngineToken
from luthier.modules.text_generation.text_joining import TextJoiner


@dataclass
class GrowingAnswer:
    """One request's answer, while it grows.

    Args:
        stream: The engine's.
        sampling: What was asked.
        prompt_text: What comes before the generated text; "" if it is not to be given back.
        prompt_tokens: Length of the prompt.
        producer_id: Named in every result.
        joiner: Sees all text, the prompt's first.
    """

    stream: TokenStream
    sampling: SamplingParams
    prompt_text: str
    prompt_tokens: int
    producer_id: ProducerId
    joiner: TextJoiner

    def __post_init__(self) -> None:
        # The prompt goes first through the joiner, for a stream as for a whole text.
        self._preamble = self.joiner.prompt(self.prompt_text)
        self._texts = [self._preamble]
        self._tokens: list[EngineToken] = []
        self._input_tokens: list[EngineToken] = []
        self._last = GenerationChunk(text="", input_token_count=self.prompt_tokens)

    def cancel(self) -> None:
        """Free the row; nothing happens after the end."""
        self.stream.cancel()

    def pieces(self) -> Iterator[GeneratedTextStreamResult]:
        """The answer piece by piece; leaving early frees the row."""
        try:
            for chunk in self.stream:
                yield from self.pieces_of(chunk)
        finally:
            self.cancel()

    def add(self, chunk: GenerationChunk) -> None:
        """Take the next chunk of a result that is given back whole."""
        self._texts.append(self._text_of(chunk))
        self._tokens.extend(chunk.tokens)
        self._input_tokens.extend(chunk.input_tokens)
        self._last = chunk

    def result(self) -> GeneratedTextResult:
        """The whole answer, after the last chunk."""
        last = self._last
        return GeneratedTextResult(
            generated_text="".join(self._texts),
            generated_tokens=last.generated_token_count,
            finish_reason=WireFinishReason[last.finish_reason.name],
            producer_id=self.producer_id,
            input_token_count=last.input_token_count,
            seed=last.seed,
            tokens=_reported(self._tokens) if self._reports_tokens else None,
            input_tokens=_reported(self._input_tokens) if self.sampling.input_tokens else None,
        )

    def pieces_of(self, chunk: GenerationChunk) -> Iterator[GeneratedTextStreamResult]:
        """A chunk as items of the stream, none if there is nothing to say yet.

        Before the first comes the prompt, if it is to be given back: not sooner, so that a request
        that cannot begin has said nothing.
        """
        preamble, self._preamble = self._preamble, ""
        if preamble:
            yield self._item(preamble, self._last, tokens=None)
        text = self._text_of(chunk)
        has_news = text or chunk.is_last or chunk.input_tokens
        if has_news or (self._reports_tokens and chunk.tokens):
            tokens = _reported(chunk.tokens) if self._reports_tokens else None
            yield self._item(text, chunk, tokens=tokens)

    def _text_of(self, chunk: GenerationChunk) -> str:
        first_piece = chunk.tokens[0].text if chunk.tokens else ""
        text = self.joiner.push(chunk.text, first_piece=first_piece)
        return text + self.joiner.flush() if chunk.is_last else text

    def _item(
        self, text: str, chunk: GenerationChunk, *, tokens: list[GeneratedToken] | None
    ) -> GeneratedTextStreamResult:
        return GeneratedTextStreamResult(
            generated_text=text,
            tokens=tokens,
            details=TokenStreamDetails(
                finish_reason=WireFinishReason[chunk.finish_reason.name],
                generated_tokens=chunk.generated_token_count,
                seed=chunk.seed,
                input_token_count=chunk.input_token_count,
            ),
            producer_id=self.producer_id,
            input_tokens=_reported(chunk.input_tokens) if chunk.input_tokens else None,
        )

    @property
    def _reports_tokens(self) -> bool:
        """Asking for log-probabilities or ranks alone means those of the generated tokens."""
        wants_detail = self.sampling.token_logprobs or self.sampling.token_ranks
        return self.sampling.generated_tokens or (wants_detail and not self.sampling.input_tokens)


def _reported(tokens: list[EngineToken] | tuple[EngineToken, ...]) -> list[GeneratedToken]:
    return [
        GeneratedToken(text=token.text, logprob=token.logprob, rank=token.rank) for token in tokens
    ]
