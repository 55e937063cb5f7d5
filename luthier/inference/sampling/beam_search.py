"""Beam search: several texts side by side, of which the likeliest is given.

Step by step the same as transformers' ``generate(num_beams=…)``, and so with its peculiarities: a
text that ends is kept only if it is among the best ``num_beams`` candidates of its step, and the
search ends when the best text in progress, judged at its present length, is no better than the
worst of ``num_beams`` complete ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data_model.sampling import SamplingParams
from luthier.inference.sampling.model_defaults import NO_DEFAULTS, ModelDefaults
from luthier.inference.sampling.sampler import logprob_and_rank, require_usable
from luthier.inference.sampling.score_rules import apply_rules, rules_for
from luthier.inference.sampling.token_history import TokenHistory

#: What a score gets that must lose to every true one, but not to -inf.
_NEVER = -1.0e9


@dataclass(frozen=True)
class Hypothesis:
    """A text that the search follows or has completed.

    Args:
        history: What was said: the prior tokens, then its own.
        measured: Log-probability and rank of each of its tokens under unprocessed logits; empty
            where that was not asked for.
    """

    history: TokenHistory
    measured: tuple[tuple[float, int], ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """Its own tokens."""
        return self.history.token_ids[self.history.num_prior :]


class BeamSearch:
    """The beams of one request.

    Call ``advance`` with the logits of the prompt, then, until ``is_done``, run ``token_ids`` on
    rows that continue ``sources`` and call it with theirs.

    Args:
        sampling: Validated, with ``num_beams`` above 1.
        prior_token_ids: Tokens said before the first generated one.
        prompt_token_ids: What the request gave.
        eos_token_ids: Tokens that end a text.
        max_tokens: Longest text; at most ``sampling.max_new_tokens``.
        defaults: What the model does where the request says nothing.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prior_token_ids: Sequence[int],
        prompt_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        max_tokens: int,
        defaults: ModelDefaults = NO_DEFAULTS,
    ) -> None:
        start = TokenHistory(prior_token_ids)
        self._rules = rules_for(
            sampling,
            defaults=defaults,
            prompt_token_ids=prompt_token_ids,
            num_prior=start.num_prior,
            eos_token_ids=eos_token_ids,
        )
        self._num_beams = sampling.num_beams
        self._eos = frozenset(eos_token_ids)
        # If the best all end, as many others must be left to go on with.
        self._num_kept = max(2, 1 + len(self._eos)) * sampling.num_beams
        self._max_tokens = max_tokens
        self._measures = sampling.token_logprobs or sampling.token_ranks
        self._renormalizes = defaults.renormalize_logits
        given = sampling.length_penalty
        self._length_penalty = defaults.length_penalty if given is None else given
        early = sampling.early_stopping
        self._early_stopping = defaults.early_stopping if early is None else early
        self._num_steps = 0
        self._running = [Hypothesis(start)] * sampling.num_beams
        # All start alike: only the first counts, or they would all stay alike.
        self._running_scores = torch.tensor([0.0] + [_NEVER] * (sampling.num_beams - 1))
        self._finished: list[Hypothesis | None] = [None] * sampling.num_beams
        self._finished_scores = torch.full((sampling.num_beams,), _NEVER)
        self.is_done = False
        self.was_cut = False
        self.sources: list[int] = []
        self.token_ids: list[int] = []

    @property
    def best(self) -> Hypothesis:
        """The text to give, once ``is_done``."""
        best = self._finished[0]
        assert best is not None
        return best

    def advance(self, logits: torch.Tensor, *, is_overdue: bool = False) -> None:
        """Take a step: lengthen every text by a token, and keep the best.

        Afterwards ``is_done``, or ``token_ids`` are to be run next, [K], after the rows
        ``sources``, [K].

        Args:
            logits: Unprocessed, [K, V]; [1, V] after the prompt.
            is_overdue: No time for another step: what there is must do, and ``was_cut`` says so.

        Raises:
            EngineError: If the logits are unusable.
        """
        self._num_steps += 1
        num_rows, num_tokens = logits.shape
        rows = logits.float().expand(self._num_beams, -1)
        totals = self._total_scores(rows).flatten()
        require_usable(float(totals.max()), step=self._num_steps)
        scores, places = totals.topk(min(self._num_kept, len(totals)))
        sources, token_ids = (places // num_tokens).tolist(), (places % num_tokens).tolist()
        must_end = is_overdue or self._num_steps >= self._max_tokens
        ends = [must_end or token_id in self._eos for token_id in token_ids]
        candidates = self._candidates(rows, sources, token_ids)
        self._keep_finished(scores, ends, candidates)
        chosen = self._keep_running(scores, ends, candidates)
        self.token_ids = [token_ids[index] for index in chosen]
        # After the prompt there is one row to continue.
        self.sources = [sources[index] if num_rows > 1 else 0 for index in chosen]
        self.was_cut = is_overdue
        self.is_done = all(ends) or self._cannot_improve()

    def cut(self) -> None:
        """End after the step that was taken last, with what there is; ``was_cut`` says so."""
        by_length = self._running_scores / self._num_steps**self._length_penalty
        merged = torch.cat([self._finished_scores, by_length])
        texts = [*self._finished, *self._running]
        self._finished_scores, places = merged.topk(self._num_beams)
        self._finished = [texts[place] for place in places.tolist()]
        self.is_done = self.was_cut = True

    def _total_scores(self, rows: torch.Tensor) -> torch.Tensor:
        logprobs = rows.log_softmax(dim=-1)
        scores = torch.stack(
            [
                apply_rules(self._rules, row, beam.history)
                for row, beam in zip(logprobs, self._running, strict=True)
            ]
        )
        if self._renormalizes:
            scores = scores.log_softmax(dim=-1)
        self._running_scores = self._running_scores.to(scores.device)
        self._finished_scores = self._finished_scores.to(scores.device)
        return scores + self._running_scores[:, None]

    def _candidates(
        self, rows: torch.Tensor, sources: list[int], token_ids: list[int]
    ) -> list[Hypothesis]:
        measured: list[tuple[tuple[float, int], ...]] = [()] * len(sources)
        if self._measures:
            targets = torch.tensor(token_ids, device=rows.device)
            pairs = logprob_and_rank(rows[sources], targets)
            measured = [
                (*self._running[source].measured, pair)
                for source, pair in zip(sources, pairs, strict=True)
            ]
        return [
            Hypothesis(self._running[source].history.followed_by(token_id), pairs)
            for source, token_id, pairs in zip(sources, token_ids, measured, strict=True)
        ]

    def _keep_finished(
        self, scores: torch.Tensor, ends: list[bool], candidates: list[Hypothesis]
    ) -> None:
        # The candidates beyond the first num_beams are there only to go on with.
        counts = [
            is_end and place < self._num_beams and not self._is_full_and_early
            for place, is_end in enumerate(ends)
        ]
        by_length = scores / self._num_steps**self._length_penalty
        by_length = by_length.where(torch.tensor(counts, device=scores.device), 2 * _NEVER)
        merged = torch.cat([self._finished_scores, by_length])
        self._finished_scores, places = merged.topk(self._num_beams)
        finished = [*self._finished, *candidates]
        self._finished = [finished[place] for place in places.tolist()]

    def _keep_running(
        self, scores: torch.Tensor, ends: list[bool], candidates: list[Hypothesis]
    ) -> list[int]:
        is_end = torch.tensor(ends, device=scores.device)
        self._running_scores, chosen = (scores + is_end * _NEVER).topk(self._num_beams)
        places: list[int] = chosen.tolist()
        self._running = [candidates[place] for place in places]
        return places

    @property
    def _is_full(self) -> bool:
        return all(each is not None for each in self._finished)

    @property
    def _is_full_and_early(self) -> bool:
        return self._early_stopping is True and self._is_full

    def _cannot_improve(self) -> bool:
        if not self._is_full:
            return False
        if self._early_stopping is True:
            return True
        counts_longest = self._early_stopping == "never" and self._length_penalty > 0
        length = self._max_tokens if counts_longest else self._num_steps
        best_possible = self._running_scores[0] / length**self._length_penalty
        return bool(best_possible <= self._finished_scores.min())
