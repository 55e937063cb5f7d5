"""From one row of logits to one token.

The functions below are transformers' logits processors for one row, in the order in which its
``generate`` applies them, so that a sampled distribution is the same as there. ``Sampler`` holds
what one request needs between steps; nothing here is shared between requests, and the process's
global random state is never touched.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Sequence

import torch

from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineError

_LARGEST_SCORE = torch.finfo(torch.float32).max
_SMALL_NUCLEUS = 512
_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny


class Sampler:
    """Chooses the tokens of one request.

    The same parameters, seed and logits give the same tokens, whatever else runs.

    Args:
        sampling: Validated parameters.
        prior_token_ids: Tokens that count as already said for the repetition penalty: a causal
            model's prompt, a seq2seq decoder's start token.
        eos_token_ids: Tokens that end a sequence.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prior_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
    ) -> None:
        self._sampling = sampling
        self._eos = list(eos_token_ids)
        self._said = set(prior_token_ids) if sampling.repetition_penalty else set()
        self._num_generated = 0
        self.seed = sampling.seed
        if sampling.is_sampling and self.seed is None:
            # 32 bits survive every JSON reader; the result reports it.
            self.seed = secrets.randbits(32)
        self._random = random.Random(self.seed)

    @property
    def takes_plain_argmax(self) -> bool:
        """True while the next token is simply the likeliest one of the unprocessed logits."""
        return not (
            self._sampling.is_sampling
            or _is_penalty(self._sampling.repetition_penalty)
            or self._is_end_forbidden
            or self._num_past_decay_start > 0
        )

    @property
    def _is_end_forbidden(self) -> bool:
        return self._num_generated < self._sampling.min_new_tokens

    @property
    def _num_past_decay_start(self) -> int:
        decay = self._sampling.exponential_decay_length_penalty
        return 0 if decay is None else max(0, self._num_generated - decay[0])

    def choose(self, logits: torch.Tensor) -> int:
        """Choose the next token.

        Args:
            logits: Unprocessed, [V], any float dtype; not changed.

        Returns:
            Its id.

        Raises:
            EngineError: If no token has a finite score: the model or the adapter is broken.
        """
        scores = self.scores(logits)
        best, best_id = scores.max(dim=-1)  # NaN wins a max, so one look finds it anywhere
        if not math.isfinite(best.item()):
            raise EngineError(
                f"the model gave no usable score for token {self._num_generated + 1}: "
                f"the best of {logits.shape[-1]} logits is {best.item()}"
            )
        if self._sampling.is_sampling:
            return draw(scores, self._random.random())
        return int(best_id)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Processed scores of the next token.

        Args:
            logits: Unprocessed, [V], any float dtype; not changed.

        Returns:
            [V], float32; -inf for tokens that cannot come.
        """
        scores = logits.float()
        sampling = self._sampling
        if _is_penalty(sampling.repetition_penalty):
            assert sampling.repetition_penalty is not None
            scores = penalise_repetition(scores, sorted(self._said), sampling.repetition_penalty)
        if self._is_end_forbidden:
            scores = forbid(scores, self._eos)
        if sampling.exponential_decay_length_penalty and self._num_past_decay_start:
            factor = sampling.exponential_decay_length_penalty[1]
            scores = favour_end(scores, self._eos, factor=factor, power=self._num_past_decay_start)
        return shape_distribution(scores, sampling) if sampling.is_sampling else scores

    def remember(self, token_id: int) -> None:
        """Count a token as said; call it once for every generated token."""
        self._num_generated += 1
        if _is_penalty(self._sampling.repetition_penalty):
            self._said.add(token_id)


def _is_penalty(repetition_penalty: float | None) -> bool:
    return bool(repetition_penalty) and repetition_penalty != 1.0


def penalise_repetition(scores: torch.Tensor, said: Sequence[int], penalty: float) -> torch.Tensor:
    """Make tokens that were said less likely (``penalty`` > 1) or likelier (< 1).

    Source:
        Keskar et al. 2019, https://arxiv.org/abs/1909.05858
    """
    if not said:
        return scores
    ids = torch.tensor(said, device=scores.device)
    before = scores[ids]
    after = torch.where(before < 0, before * penalty, before / penalty)
    return scores.index_copy(0, ids, after)


def forbid(scores: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """Give ``token_ids`` the score -inf."""
    return scores.index_fill(0, torch.tensor(list(token_ids), device=scores.device), -math.inf)


def favour_end(
    scores: torch.Tensor, eos_token_ids: Sequence[int], *, factor: float, power: int
) -> torch.Tensor:
    """Raise the end-of-sequence scores by ``|score| * (factor ** power - 1)``.

    Args:
        scores: [V].
        eos_token_ids: Tokens that end a sequence.
        factor: Above 1 makes the end likelier with each token.
        power: Tokens generated since the penalty's start index.

    Returns:
        [V].
    """
    ids = torch.tensor(list(eos_token_ids), device=scores.device)
    before = scores[ids]
    growth = _bounded_power(factor, power) - 1
    bonus = (before.abs() * growth).masked_fill(~torch.isfinite(before), 0.0)
    return scores.index_copy(0, ids, (before + bonus).clamp(max=_LARGEST_SCORE))


def _bounded_power(factor: float, power: int) -> float:
    # Overflows long before the token limit; the largest score wins as surely as infinity.
    try:
        return min(factor**power, _LARGEST_SCORE)
    except OverflowError:
        return _LARGEST_SCORE


def shape_distribution(scores: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Apply temperature, top-k, top-p and typical-p, in this order."""
    if sampling.temperature is not None and sampling.temperature != 1.0:
        # Shifted first, so that a tiny temperature gives -inf to the others and never inf or NaN.
        scores = (scores - scores.max()) / max(sampling.temperature, _SMALLEST_TEMPERATURE)
    if sampling.top_k:
        scores = keep_top_k(scores, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.typical_p is not None and sampling.typical_p < 1.0:
        scores = keep_typical(scores, sampling.typical_p)
    return scores


def keep_top_k(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Keep the ``top_k`` highest scores and what ties with the last of them."""
    lowest_kept = torch.topk(scores, min(top_k, scores.shape[-1])).values[-1]
    return scores.masked_fill(scores < lowest_kept, -math.inf)


def keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches ``top_p``.

    Source:
        Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
    """
    # Sorting a whole vocabulary takes milliseconds, and the set is nearly always small.
    for num_looked_at in (min(_SMALL_NUCLEUS, scores.shape[-1]), scores.shape[-1]):
        likeliest, order = torch.topk(scores, num_looked_at)
        mass = (likeliest - scores.logsumexp(dim=-1)).exp().cumsum(dim=-1)
        if mass[-1] >= top_p:
            break
    # A token stays if those before it do not reach the mass alone.
    kept = order[: 1 + int((mass[:-1] < top_p).sum())]
    return torch.full_like(scores, -math.inf).index_copy(0, kept, scores[kept])


def keep_typical(scores: torch.Tensor, typical_p: float) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest the entropy, up to a mass of ``typical_p``.

    Source:
        Meister et al. 2023, https://arxiv.org/abs/2202.00666
    """
    logprobs = scores.log_softmax(dim=-1)
    entropy = -(logprobs * logprobs.exp()).nansum()
    distance, order = torch.sort((-logprobs - entropy).abs())
    mass = scores[order].softmax(dim=-1).cumsum(dim=-1)
    last_kept = min(int((mass < typical_p).sum()), len(mass) - 1)
    is_dropped = distance > distance[last_kept]
    is_dropped[0] = False
    return scores.index_fill(0, order[is_dropped], -math.inf)


def draw(scores: torch.Tensor, uniform: float) -> int:
    """Draw a token by inverting the distribution function.

    One number decides, so tiny differences between the logits of two batch shapes change the
    token only where ``uniform`` falls on a border.

    Args:
        scores: [V], at least one finite.
        uniform: In [0, 1).

    Returns:
        Its id.
    """
    candidates = scores.isfinite().nonzero()[:, 0]
    cumulative = scores[candidates].softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = cumulative[-1] * uniform
    # right=True: the first token whose cumulative mass exceeds the target, so none without mass.
    place = int(torch.searchsorted(cumulative, target, right=True))
    if place < len(candidates):
        return int(candidates[place])
    return int(scores.argmax())  # the product rounded up to the whole mass


def logprob_and_rank(logits: torch.Tensor, token_ids: torch.Tensor) -> list[tuple[float, int]]:
    """Log-probability and rank of given tokens under unprocessed logits.

    Args:
        logits: [T, V].
        token_ids: [T], the token looked up in each row.

    Returns:
        T pairs of natural log-probability and rank (1 = likeliest; ties share the best rank).
    """
    rows = logits.float()
    chosen = rows.gather(1, token_ids[:, None])
    logprobs = chosen[:, 0] - rows.logsumexp(dim=-1)
    ranks = (rows > chosen).sum(dim=-1) + 1
    return list(zip(logprobs.tolist(), ranks.tolist(), strict=True))
