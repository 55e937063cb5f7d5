"""One request on its way through an engine: everything about a row but its forward pass.

Every engine makes logits its own way and hands them to ``GeneratedSequence.advance``; what tokens,
text, reports and finish reason follow from them is decided here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from luthier.inference.base import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Request,
    Token,
)
from luthier.inference.prompts import Prompt
from luthier.inference.sampling.beam_search import BeamSearch, Hypothesis
from luthier.inference.sampling.model_defaults import NO_DEFAULTS, ModelDefaults
from luthier.inference.sampling.sampler import Sampler, logprob_and_rank
from luthier.inference.streaming import IncrementalDetokenizer, StopMatcher


@dataclass(frozen=True)
class Vocabulary:
    """What turning tokens into text needs of a base model.

    Args:
        tokenizer: Its tokenizer.
        eos_token_ids: Tokens that end a sequence.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]

    def token(
        self, token_id: int, *, logprob: float | None = None, rank: int | None = None
    ) -> Token:
        """The token as it is reported."""
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        return Token(token_id=token_id, text=piece or "", logprob=logprob, rank=rank)


class RowSequence:
    """What every row is to an engine, whatever its answer is made of.

    Attributes:
        is_scored: Whether the answer is made of the prompt's last hidden state; else of logits.

    Args:
        request: What was asked.
        prompt: Its prompt, checked against the model's context.
    """

    is_scored: bool = False

    def __init__(self, request: Request, *, prompt: Prompt) -> None:
        self.request: Request = request
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.finish_reason = FinishReason.NOT_FINISHED

    @property
    def is_finished(self) -> bool:
        """True once a last chunk was made."""
        return self.finish_reason is not FinishReason.NOT_FINISHED

    @property
    def is_overdue(self) -> bool:
        """True once the time for it has passed."""
        return False

    @property
    def max_new_tokens(self) -> int:
        """Tokens that it may generate."""
        return 0

    @property
    def num_unreported_prompt(self) -> int:
        """Prompt tokens whose log-probability is asked for and was not reported yet."""
        return 0

    def end(self, reason: FinishReason) -> GenerationChunk:
        """End without a further token: cancelled, or out of time."""
        return self._last_chunk(reason)

    def _last_chunk(
        self, reason: FinishReason, *, scores: tuple[float, ...] = ()
    ) -> GenerationChunk:
        self.finish_reason = reason
        return GenerationChunk(
            text="",
            finish_reason=reason,
            input_token_count=len(self.prompt.token_ids),
            scores=scores,
        )


class GeneratedSequence(RowSequence):
    """The growing answer to one request.

    Args:
        request: What was asked.
        prompt: Its prompt, checked against the model's context.
        vocabulary: Of the base model.
        prior_token_ids: What the repetition penalty counts as said before the first token.
        defaults: What the model does where the request says nothing.
        clock: Seconds, monotonic. ``max_time`` counts from now on.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        prompt: Prompt,
        vocabulary: Vocabulary,
        prior_token_ids: Sequence[int],
        defaults: ModelDefaults = NO_DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(request, prompt=prompt)
        self.request: GenerationRequest = request
        sampling = request.sampling
        self._own_texts = {} if prompt.own_tokens is None else prompt.own_tokens.text_of
        self._stand_in = {each: -1 - place for place, each in enumerate(self._own_texts)}
        prior_token_ids = self._scored(prior_token_ids)
        self.sampler = Sampler(
            sampling,
            prior_token_ids=prior_token_ids,
            eos_token_ids=sorted(vocabulary.eos_token_ids),
            prompt_token_ids=self._scored(prompt.token_ids),
            defaults=defaults,
        )
        self._prior_token_ids = tuple(prior_token_ids)
        self._defaults = defaults
        self._vocabulary = vocabulary
        self._clock = clock
        self._deadline = None if sampling.max_time is None else clock() + sampling.max_time
        self._detokenizer = IncrementalDetokenizer(vocabulary.tokenizer)
        self._stops = StopMatcher(
            sampling.stop_sequences, is_kept=sampling.include_stop_sequence is not False
        )
        self._input_tokens: tuple[Token, ...] = ()
        self._num_reported = min(1, len(prompt.token_ids))  # the first token has nothing to report
        if sampling.input_tokens:
            self._input_tokens = tuple(self._token(i) for i in prompt.token_ids)

    @property
    def is_overdue(self) -> bool:
        """True once ``max_time`` has passed."""
        return self._deadline is not None and self._clock() >= self._deadline

    @property
    def max_new_tokens(self) -> int:
        """Tokens that it may generate: as many as asked for and as there is room for."""
        room, asked = self.prompt.room, self.request.sampling.max_new_tokens
        return asked if room is None else min(asked, room)

    @property
    def wants_prompt_logits(self) -> bool:
        """True if prefill must give the logits of every prompt token, not only the last."""
        sampling = self.request.sampling
        return sampling.input_tokens and (sampling.token_logprobs or sampling.token_ranks)

    @property
    def num_unreported_prompt(self) -> int:
        """Prompt tokens whose log-probability is asked for and was not reported yet."""
        if not self.wants_prompt_logits:
            return 0
        return len(self.prompt.token_ids) - self._num_reported

    def report_prompt(self, logits: torch.Tensor, *, start: int = 0) -> None:
        """Give the prompt's tokens their log-probabilities and ranks; causal models only.

        Args:
            logits: Unprocessed, [N, V]: row n predicts prompt token ``start + n + 1``; rows beyond
                the last, and for tokens that were reported before, are not used.
            start: The prompt token that row 0 was computed from.
        """
        ids = self.prompt.token_ids
        skipped = self._num_reported - start - 1
        following = ids[self._num_reported : max(0, start + len(logits) + 1)]
        # What is never written has no log-probability.
        known = [max(0, token_id) for token_id in self._scored(following)]
        targets = torch.tensor(known, device=logits.device, dtype=torch.long)
        rows = logits[skipped : skipped + len(following)]
        measured = logprob_and_rank(rows, targets)
        new = tuple(
            self._token(i) if i in self._own_texts else self._token(i, *pair)
            for i, pair in zip(following, measured, strict=True)
        )
        done = self._num_reported + len(new)
        before, after = self._input_tokens[: self._num_reported], self._input_tokens[done:]
        self._input_tokens = (*before, *new, *after)
        self._num_reported = done

    def advance(
        self, logits: torch.Tensor, *, best: tuple[int, float] | None = None
    ) -> GenerationChunk:
        """Choose the next token and say what it adds to the stream.

        Args:
            logits: Unprocessed, [V].
            best: For ``Sampler.choose``.

        Returns:
            The chunk; the last one if the sequence ends here.

        Raises:
            EngineError: If the logits are unusable.
        """
        token_id = self.sampler.choose(logits, best=best)
        self.sampler.remember(token_id)
        return self._accept(self._measured(token_id, logits), is_overdue=self.is_overdue)

    def beam_search(self) -> BeamSearch:
        """A new search for this sequence; ``replay`` takes what it finds."""
        return BeamSearch(
            self.request.sampling,
            prior_token_ids=self._prior_token_ids,
            prompt_token_ids=self._scored(self.prompt.token_ids),
            eos_token_ids=sorted(self._vocabulary.eos_token_ids),
            max_tokens=self.max_new_tokens,
            defaults=self._defaults,
        )

    def replay(self, found: Hypothesis, *, was_cut: bool) -> Iterator[GenerationChunk]:
        """Take the text that a beam search found.

        Args:
            found: The best text; a stop sequence ends it earlier.
            was_cut: Whether the time was over before the search was done.

        Yields:
            Its chunks, the last one included.
        """
        measured = found.measured or [None] * len(found.token_ids)
        num_left = len(found.token_ids)
        for token_id, pair in zip(found.token_ids, measured, strict=True):
            num_left -= 1
            token = (
                self._vocabulary.token(token_id) if pair is None else self._token(token_id, *pair)
            )
            yield self._accept(token, is_overdue=was_cut and num_left == 0)
            if self.is_finished:
                return

    def _accept(self, token: Token, *, is_overdue: bool) -> GenerationChunk:
        self.token_ids.append(token.token_id)
        text = self._stops.push(self._detokenizer.push(token.token_id))
        reason = self._reason_after(token.token_id, is_overdue=is_overdue)
        if reason is not FinishReason.NOT_FINISHED:
            text += self._rest_of_text()
            if self._stops.has_matched:
                reason = FinishReason.STOP_SEQUENCE
        return self._chunk(text, tokens=(token,), reason=reason)

    def end(self, reason: FinishReason) -> GenerationChunk:
        """End without a further token: cancelled, or out of time."""
        return self._chunk(self._rest_of_text(), tokens=(), reason=reason)

    def _reason_after(self, token_id: int, *, is_overdue: bool) -> FinishReason:
        if token_id in self._vocabulary.eos_token_ids:
            return FinishReason.EOS_TOKEN
        if self._stops.has_matched:
            return FinishReason.STOP_SEQUENCE
        if len(self.token_ids) >= self.request.sampling.max_new_tokens:
            return FinishReason.MAX_TOKENS
        if self.prompt.room is not None and len(self.token_ids) >= self.prompt.room:
            return FinishReason.TOKEN_LIMIT
        if is_overdue:
            return FinishReason.TIME_LIMIT
        return FinishReason.NOT_FINISHED

    def _rest_of_text(self) -> str:
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def _measured(self, token_id: int, logits: torch.Tensor) -> Token:
        sampling = self.request.sampling
        if not (sampling.token_logprobs or sampling.token_ranks):
            return self._vocabulary.token(token_id)
        chosen = torch.tensor([token_id], device=logits.device)
        return self._token(token_id, *logprob_and_rank(logits[None], chosen)[0])

    def _scored(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The ids, negative where logits have no place for them: those of the adapter's own."""
        if not self._stand_in:
            return token_ids
        return tuple(self._stand_in.get(each, each) for each in token_ids)

    def _token(self, token_id: int, logprob: float | None = None, rank: int | None = None) -> Token:
        sampling = self.request.sampling
        if token_id in self._own_texts:
            return Token(token_id=token_id, text=self._own_texts[token_id])
        return self._vocabulary.token(
            token_id,
            logprob=logprob if sampling.token_logprobs else None,
            rank=rank if sampling.token_ranks else None,
        )

    def _chunk(
        self, text: str, *, tokens: tuple[Token, ...], reason: FinishReason
    ) -> GenerationChunk:
        self.finish_reason = reason
        input_tokens, self._input_tokens = self._input_tokens, ()
        return GenerationChunk(
            text=text,
            tokens=tokens,
            input_tokens=input_tokens,
            finish_reason=reason,
            generated_token_count=len(self.token_ids),
            input_token_count=len(self.prompt.token_ids),
            seed=self.sampler.seed,
        )
