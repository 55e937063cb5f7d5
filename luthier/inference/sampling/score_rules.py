"""Rules about what may come next, given what was said: each is one of transformers' logits
processors for one row.

``rules_for`` gives those of a request in the order in which ``generate`` applies them, so that the
processed scores are the same as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch

from luthier.data_model.sampling import SamplingParams
from luthier.inference.sampling.model_defaults import ModelDefaults, TokenBias
from luthier.inference.sampling.token_history import TokenHistory

Number = TypeVar("Number", int, float)

_LARGEST_SCORE = torch.finfo(torch.float32).max


class ScoreRule(Protocol):
    """Changes the scores of the next token. Has no state."""

    def applies(self, history: TokenHistory) -> bool:
        """False while ``apply`` would change nothing."""

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """New scores, [V]; ``scores`` is not changed. Only while the rule ``applies``."""


def rules_for(
    sampling: SamplingParams,
    *,
    defaults: ModelDefaults,
    prompt_token_ids: Sequence[int],
    num_prior: int,
    eos_token_ids: Sequence[int],
) -> tuple[ScoreRule, ...]:
    """The rules of a request to a model, in transformers' order.

    Args:
        sampling: What the request says; where it says nothing, ``defaults`` count.
        defaults: The model's.
        prompt_token_ids: Of the request; a seq2seq model's encoder reads them.
        num_prior: Tokens said before the first generated one.
        eos_token_ids: Tokens that end a sequence.

    Returns:
        Rules that may apply at some step; empty for most requests.
    """
    rules: list[ScoreRule] = []
    if defaults.sequence_bias:
        rules.append(BiasSequences(defaults.sequence_bias))
    if defaults.encoder_repetition_penalty != 1.0:
        rules.append(PenaliseTokens(1 / defaults.encoder_repetition_penalty, prompt_token_ids))
    penalty = _given(sampling.repetition_penalty, defaults.repetition_penalty)
    if penalty not in (0.0, 1.0):
        rules.append(PenaliseRepetition(penalty))
    ngram_size = _given(sampling.no_repeat_ngram_size, defaults.no_repeat_ngram_size)
    if ngram_size:
        rules.append(ForbidRepeatedNgrams(ngram_size))
    if defaults.encoder_no_repeat_ngram_size:
        rules.append(ForbidRepeatedNgrams(defaults.encoder_no_repeat_ngram_size, prompt_token_ids))
    ends = [(token_id,) for token_id in eos_token_ids]
    bad_words = [(word, -math.inf) for word in defaults.bad_words_ids if word not in ends]
    if bad_words:
        rules.append(BiasSequences(bad_words))
    num_forbidden = max(
        sampling.min_new_tokens, defaults.min_new_tokens, defaults.min_length - num_prior
    )
    if num_forbidden > 0:
        rules.append(ForbidBefore(num_forbidden, eos_token_ids))
    return (*rules, *_later_rules(sampling, defaults, num_prior, eos_token_ids))


def _later_rules(
    sampling: SamplingParams,
    defaults: ModelDefaults,
    num_prior: int,
    eos_token_ids: Sequence[int],
) -> Iterable[ScoreRule]:
    forced = defaults.forced_bos_token_id
    if forced is not None and num_prior <= 1:
        yield ForceAt(1 - num_prior, (forced,))
    if defaults.forced_eos_token_ids:
        yield ForceAt(sampling.max_new_tokens - 1, defaults.forced_eos_token_ids)
    decay = sampling.exponential_decay_length_penalty or defaults.exponential_decay_length_penalty
    if decay is not None:
        yield FavourEnd(decay, eos_token_ids)
    if defaults.suppress_tokens:
        yield Forbid(defaults.suppress_tokens)
    if defaults.begin_suppress_tokens:
        # A forced first token takes the beginning's place.
        begin = 1 if forced is not None and num_prior <= 1 else 0
        yield ForbidAt(begin, defaults.begin_suppress_tokens)


def apply_rules(
    rules: Iterable[ScoreRule], scores: torch.Tensor, history: TokenHistory
) -> torch.Tensor:
    """Apply the rules that apply.

    Args:
        rules: In this order.
        scores: [V], float32; not changed.
        history: What was said.

    Returns:
        [V].
    """
    for rule in rules:
        if rule.applies(history):
            scores = rule.apply(scores, history)
    return scores


def _given(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked


class PenaliseRepetition:
    """Makes tokens that were said less likely (``penalty`` > 1) or likelier (< 1).

    Args:
        penalty: > 0.

    Source:
        Keskar et al. 2019, https://arxiv.org/abs/1909.05858
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return bool(history.token_ids)

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        return _penalised(scores, history.said(scores.device), self._penalty)


class PenaliseTokens:
    """The same for given tokens, whatever was said.

    Args:
        penalty: > 0.
        token_ids: Which.
    """

    def __init__(self, penalty: float, token_ids: Iterable[int]) -> None:
        self._penalty = penalty
        self._token_ids = tuple(each for each in dict.fromkeys(token_ids) if each >= 0)

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return bool(self._token_ids)

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        return _penalised(scores, _tensor_of(self._token_ids, scores.device), self._penalty)


class BiasSequences:
    """Adds to the score of a token that would complete a sequence.

    Args:
        biases: Sequences of token ids, and what is added; -inf forbids.
    """

    def __init__(self, biases: Iterable[TokenBias]) -> None:
        self._biases = tuple(biases)

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return bool(self._completed(history))

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        num_tokens = scores.shape[-1]
        completed = [each for each in self._completed(history) if each[0] < num_tokens]
        ids = _tensor_of((token_id for token_id, _ in completed), scores.device)
        amounts = scores.new_tensor([bias for _, bias in completed])
        return scores.index_add(0, ids, amounts)

    def _completed(self, history: TokenHistory) -> list[tuple[int, float]]:
        said = history.token_ids
        return [
            (ids[-1], bias)
            for ids, bias in self._biases
            if len(ids) == 1 or said[-(len(ids) - 1) :] == list(ids[:-1])
        ]


class ForbidRepeatedNgrams:
    """Forbids the token that would complete a sequence a second time.

    Args:
        size: Tokens of a sequence.
        text: Where it must not stand yet; None is what was said.
    """

    def __init__(self, size: int, text: Sequence[int] | None = None) -> None:
        self._size = size
        self._text = text

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return len(history.token_ids) >= self._size - 1

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        said = history.token_ids
        text = torch.tensor(said if self._text is None else self._text, dtype=torch.long)
        if len(text) < self._size:
            return scores
        start = torch.tensor(said[len(said) - self._size + 1 :], dtype=torch.long)
        windows = text.unfold(0, self._size, 1)
        is_begun = (windows[:, :-1] == start).all(dim=-1)
        ends = windows[is_begun, -1]
        return _forbidden(scores, ends[ends >= 0].to(scores.device))


class Forbid:
    """Forbids tokens, always.

    Args:
        token_ids: Which.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids = tuple(token_ids)

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return True

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        ids = _tensor_of(self._token_ids, scores.device)
        return _forbidden(scores, ids[ids < scores.shape[-1]])


class ForbidBefore(Forbid):
    """Forbids tokens until enough were generated.

    Args:
        num_generated: How many.
        token_ids: Which are forbidden.
    """

    def __init__(self, num_generated: int, token_ids: Iterable[int]) -> None:
        super().__init__(token_ids)
        self._num_generated = num_generated

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return history.num_generated < self._num_generated


class ForbidAt(Forbid):
    """Forbids tokens at one place.

    Args:
        num_generated: Tokens before that place.
        token_ids: Which are forbidden.
    """

    def __init__(self, num_generated: int, token_ids: Iterable[int]) -> None:
        super().__init__(token_ids)
        self._num_generated = num_generated

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return history.num_generated == self._num_generated


class ForceAt:
    """Lets only some tokens come at one place, all of them alike.

    Args:
        num_generated: Tokens before that place.
        token_ids: Which may come.
    """

    def __init__(self, num_generated: int, token_ids: Iterable[int]) -> None:
        self._num_generated = num_generated
        self._token_ids = tuple(token_ids)

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return history.num_generated == self._num_generated

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        forced = torch.full_like(scores, -math.inf)
        return forced.index_fill_(0, _tensor_of(self._token_ids, scores.device), 0.0)


class FavourEnd:
    """Raises the end-of-sequence scores by ``|score| * (factor ** power - 1)``.

    The power is how many tokens were generated since the start index.

    Args:
        decay: (start index, factor); a factor above 1 makes the end likelier with each token.
        eos_token_ids: Tokens that end a sequence.
    """

    def __init__(self, decay: tuple[int, float], eos_token_ids: Iterable[int]) -> None:
        self._start, self._factor = decay
        self._eos = tuple(eos_token_ids)

    def applies(self, history: TokenHistory) -> bool:
        """See ``ScoreRule``."""
        return history.num_generated > self._start

    def apply(self, scores: torch.Tensor, history: TokenHistory) -> torch.Tensor:
        """See ``ScoreRule``."""
        ids = _tensor_of(self._eos, scores.device)
        before = scores[ids]
        growth = _bounded_power(self._factor, history.num_generated - self._start) - 1
        bonus = (before.abs() * growth).masked_fill(~torch.isfinite(before), 0.0)
        return scores.index_copy(0, ids, (before + bonus).clamp(max=_LARGEST_SCORE))


def _penalised(scores: torch.Tensor, ids: torch.Tensor, penalty: float) -> torch.Tensor:
    before = scores[ids]
    after = torch.where(before < 0, before * penalty, before / penalty)
    return scores.index_copy(0, ids, after)


def _forbidden(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return scores.index_fill(0, ids, -math.inf)


def _bounded_power(factor: float, power: int) -> float:
    # Overflows long before the token limit; the largest score wins as surely as infinity.
    try:
        return min(factor**power, _LARGEST_SCORE)
    except OverflowError:
        return _LARGEST_SCORE


def _tensor_of(token_ids: Iterable[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(token_ids), dtype=torch.long, device=device)
