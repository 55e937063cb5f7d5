"""From one row of logits to one token.

``Sampler`` holds what one request needs between steps: the rules that apply to it
(``score_rules``), how it draws (``distribution``), its own random numbers. Nothing here is shared
between requests, and the process's global random state is never touched.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Sequence

import torch

from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineError
from luthier.inference.sampling.distribution import draw_rows
from luthier.inference.sampling.model_defaults import NO_DEFAULTS, ModelDefaults
from luthier.inference.sampling.score_rules import apply_rules, rules_for
from luthier.inference.sampling.token_history import TokenHistory


class Sampler:
    """Chooses the tokens of one request.

    The same parameters, seed and logits give the same tokens, whatever else runs.

    Args:
        sampling: Validated parameters.
        prior_token_ids: Tokens that count as already said: a causal model's prompt, a seq2seq
            decoder's start token.
        eos_token_ids: Tokens that end a sequence.
        prompt_token_ids: What the request gave, which a seq2seq encoder reads.
        defaults: What the model does where the request says nothing.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prior_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        prompt_token_ids: Sequence[int] = (),
        defaults: ModelDefaults = NO_DEFAULTS,
    ) -> None:
        self._sampling = sampling
        self._history = TokenHistory(prior_token_ids)
        self._rules = rules_for(
            sampling,
            defaults=defaults,
            prompt_token_ids=prompt_token_ids,
            num_prior=self._history.num_prior,
            eos_token_ids=eos_token_ids,
        )
        self.seed = sampling.seed
        if sampling.is_sampling and self.seed is None:
            # 32 bits survive every JSON reader; the result reports it.
            self.seed = secrets.randbits(32)
        self._random = random.Random(self.seed)
        self._uniform: float | None = None

    @property
    def sampling(self) -> SamplingParams:
        """Its parameters."""
        return self._sampling

    @property
    def uniform(self) -> float:
        """The random number in [0, 1) of the next token, the same until that is remembered."""
        if self._uniform is None:
            self._uniform = self._random.random()
        return self._uniform

    def choose(self, logits: torch.Tensor, *, best: tuple[int, float] | None = None) -> int:
        """Choose the next token.

        Args:
            logits: Unprocessed, [V], any float dtype; not changed.
            best: What ``choose_together`` chose, where it did so for many rows at once.

        Returns:
            Its id.

        Raises:
            EngineError: If no token has a finite score: the model or the adapter is broken.
        """
        token_id, best_score = best or choose_together([self], [logits])[0]
        require_usable(best_score, step=self._history.num_generated + 1)
        return token_id

    def ruled(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of the next token under the rules that apply now.

        Args:
            logits: Unprocessed, [V], any float dtype; not changed.

        Returns:
            [V], float32; -inf for tokens that cannot come. The logits themselves if they are
            float32 and no rule applies.
        """
        return apply_rules(self._rules, logits.float(), self._history)

    def remember(self, token_id: int) -> None:
        """Count a token as said; call it once for every generated token."""
        self._history.add(token_id)
        self._uniform = None


def choose_together(
    samplers: Sequence[Sampler], rows: Sequence[torch.Tensor]
) -> list[tuple[int, float]]:
    """Choose the next token of many rows, each as if it were alone.

    Args:
        samplers: Of N rows.
        rows: Their unprocessed logits, N of [V], on one device; not changed.

    Returns:
        N pairs of token id and highest score, for ``Sampler.choose``; a highest score that is not
        finite says that the row is broken.
    """
    scores = [sampler.ruled(row) for sampler, row in zip(samplers, rows, strict=True)]
    chosen: dict[int, tuple[int, float]] = {}
    drawn = [place for place, sampler in enumerate(samplers) if sampler.sampling.is_sampling]
    if drawn:
        pairs = draw_rows(
            [scores[place] for place in drawn],
            [samplers[place].sampling for place in drawn],
            [samplers[place].uniform for place in drawn],
        )
        chosen.update(zip(drawn, pairs, strict=True))
    taken = [place for place in range(len(rows)) if place not in chosen]
    pairs = likeliest([scores[place] for place in taken])
    chosen.update(zip(taken, pairs, strict=True))
    return [chosen[place] for place in range(len(rows))]


def likeliest(rows: Sequence[torch.Tensor]) -> list[tuple[int, float]]:
    """The likeliest token of each row, for all rows at once.

    Args:
        rows: N of [V], on one device; not changed.

    Returns:
        N pairs of token id and score; the score is NaN if any of its row is.
    """
    if not rows or rows[0].device.type == "cpu":
        # numpy's takes a third of the time of torch's, and torch's would need a copy of all rows.
        arrays = [row.float().numpy() for row in rows]
        ids = [int(array.argmax()) for array in arrays]
        return [(index, float(array[index])) for index, array in zip(ids, arrays, strict=True)]
    best, places = torch.stack(list(rows)).float().max(dim=-1)
    return list(zip(places.tolist(), best.tolist(), strict=True))


def require_usable(best_score: float, *, step: int) -> None:
    """Refuse scores that come from a broken model or adapter.

    Args:
        best_score: The highest of a row; NaN if any is.
        step: Which generated token they are for, from 1.

    Raises:
        EngineError: If it is not finite.
    """
    if not math.isfinite(best_score):
        raise EngineError(
            f"the model gave no usable score for token {step}: the best is {best_score}"
        )


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
