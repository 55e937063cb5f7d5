"""What sampling does to scores: temperature, the sets of tokens that may be drawn, the draw.

Each set is that of one of transformers' warpers, taken in the order in which ``generate`` applies
them, so that a sampled distribution is the same as there. What concerns every score is done for all
rows at once, whatever their settings; then each row goes on with the few tokens that are left. No
row looks at another: it gives the same in any company. Scores are float32 on the CPU: drawing takes
many small looks at them, each of which would stop a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from luthier.data_model.sampling import SamplingParams

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.int64]

_NUM_BINS = 1024
_BLOCK = 128
_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
#: More than rounding takes from a mass: what is put aside early must not be missed later.
_SLACK = 1e-3


@dataclass(frozen=True)
class Candidates:
    """Tokens of one row that may be drawn.

    Args:
        ids: In rising order, [N].
        scores: Their scores, less the highest of the row and divided by the temperature, [N].
    """

    ids: Places
    scores: Floats

    def only(self, kept: npt.NDArray[np.bool_] | Places) -> Candidates:
        """Those at some places, in rising order, or where a mask says so."""
        return Candidates(self.ids[kept], self.scores[kept])

    def masses(self) -> Floats:
        """Their probabilities, [N]."""
        weights = np.exp(self.scores)
        shares: Floats = weights / weights.sum()
        return shares


def draw_rows(
    rows: Sequence[torch.Tensor], samplings: Sequence[SamplingParams], uniforms: Sequence[float]
) -> list[tuple[int, float]]:
    """Draw a token for each row.

    One number decides, so tiny differences between the logits of two batch shapes change a token
    only where its number falls on a border.

    Args:
        rows: Scores, N of [V], float32; not changed.
        samplings: What each row asks for.
        uniforms: A number in [0, 1) for each.

    Returns:
        N pairs of a token id and the highest score of its row; where that is not finite, the id
        means nothing.
    """
    is_here = rows[0].device.type == "cpu"
    shifted = (_shift_in_turns if is_here else _shift_together)(rows, samplings)
    pairs = []
    for (row, highest), sampling, uniform in zip(shifted, samplings, uniforms, strict=True):
        token_id = _draw(row, sampling, uniform) if math.isfinite(highest) else 0
        pairs.append((token_id, highest))
    return pairs


def _shift_together(
    rows: Sequence[torch.Tensor], samplings: Sequence[SamplingParams]
) -> Iterator[tuple[Floats, float]]:
    """Each row as ``_shift`` leaves it, and its best; a GPU is asked only once."""
    scores = torch.stack(list(rows))
    best = scores.amax(dim=-1)
    yield from zip(_shift(scores, best, samplings).cpu().numpy(), best.tolist(), strict=True)


def _shift_in_turns(
    rows: Sequence[torch.Tensor], samplings: Sequence[SamplingParams]
) -> Iterator[tuple[Floats, float]]:
    """Each row as ``_shift`` leaves it, and its best; in one place, which stays in the cache."""
    place = np.empty(rows[0].shape, dtype=np.float32)
    for row, sampling in zip(rows, samplings, strict=True):
        scores: Floats = row.numpy()
        best = scores.max()
        divisor = np.float32(_divisor(sampling))
        # What is not finite is for the caller to see.
        with np.errstate(all="ignore"):
            np.subtract(scores, best, out=place)
            if divisor != 1.0:
                np.divide(place, divisor, out=place)
        yield place, float(best)


def _shift(
    scores: torch.Tensor, best: torch.Tensor, samplings: Sequence[SamplingParams]
) -> torch.Tensor:
    """Scores less the best and divided by the temperature, in place."""
    # Shifted first, so that a tiny temperature gives -inf to the others and never inf or NaN.
    scores -= best[:, None]
    divisors = [_divisor(each) for each in samplings]
    if any(divisor != 1.0 for divisor in divisors):
        scores /= scores.new_tensor(divisors)[:, None]
    return scores


def _divisor(sampling: SamplingParams) -> float:
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    return max(temperature, _SMALLEST_TEMPERATURE)


def _draw(scores: Floats, sampling: SamplingParams, uniform: float) -> int:
    if not _shapes(sampling):
        return draw(scores, uniform)
    found = candidates_of(scores, sampling)
    reached = np.exp(found.scores).cumsum(dtype=np.float64)
    # "right": the first whose cumulative mass exceeds the target, so none without mass.
    place = int(np.searchsorted(reached, reached[-1] * uniform, side="right"))
    if place == len(reached):  # the product rounded up to the whole mass
        place = int(np.flatnonzero(found.scores > -math.inf)[-1])
    return int(found.ids[place])


def _shapes(sampling: SamplingParams) -> bool:
    return bool(
        sampling.top_k
        or (sampling.top_p is not None and sampling.top_p < 1.0)
        or sampling.min_p
        or (sampling.typical_p is not None and sampling.typical_p < 1.0)
    )


def candidates_of(scores: Floats, sampling: SamplingParams) -> Candidates:
    """The tokens of one row that may be drawn.

    Args:
        scores: Less the highest and divided by the temperature, [V]; at least one finite.
        sampling: What the row asks for.

    Returns:
        The candidates.
    """
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    total = float(np.exp(scores).sum()) if top_p < 1.0 and not sampling.top_k else None
    found = _beginning(scores, sampling, total)
    if sampling.top_k:
        found = keep_top_k(found, sampling.top_k)
    if top_p < 1.0:
        found = keep_top_p(found, top_p, total=total)
    if sampling.min_p:
        found = keep_min_p(found, sampling.min_p)
    if sampling.typical_p is not None and sampling.typical_p < 1.0:
        found = keep_typical(found, sampling.typical_p)
    return found


def _beginning(scores: Floats, sampling: SamplingParams, total: float | None) -> Candidates:
    """All that the first of the sets can hold, and not much more: one look at every score."""
    least = -math.inf
    if sampling.top_k:
        least = _among_highest(scores, sampling.top_k)
    elif sampling.top_p is not None and total is not None:
        # Tokens below this have less than 1 - top_p together, so the set lies among the others.
        least = math.log((1 - sampling.top_p) * total / len(scores)) - _SLACK
    elif sampling.min_p:
        least = math.log(sampling.min_p) - _SLACK
    ids = np.flatnonzero(scores >= least)
    return Candidates(ids, scores[ids])


def _among_highest(scores: Floats, count: int) -> float:
    """A score that at least ``count`` reach, and not many more."""
    num_blocks = len(scores) // _BLOCK
    if count > num_blocks:
        return -math.inf
    # So many blocks have a score that is as high.
    highest = scores[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
    return float(np.partition(highest, num_blocks - count)[num_blocks - count])


def keep_top_k(found: Candidates, top_k: int) -> Candidates:
    """Keep the ``top_k`` highest scores and what ties with the last of them."""
    num_dropped = len(found.scores) - top_k
    if num_dropped <= 0:
        return found
    return found.only(found.scores >= np.partition(found.scores, num_dropped)[num_dropped])


def keep_top_p(found: Candidates, top_p: float, *, total: float | None = None) -> Candidates:
    """Keep the smallest set of likeliest tokens whose mass reaches ``top_p``.

    Args:
        found: Tokens, or those of them that the set can hold.
        top_p: Below 1.
        total: The sum of ``exp(scores)`` of all tokens; None is that of ``found``.

    Returns:
        The set.

    Source:
        Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
    """
    masses = np.exp(found.scores)
    masses /= masses.sum() if total is None else np.float32(total)
    return found.only(_nearest(-found.scores, masses, top_p))


def keep_min_p(found: Candidates, min_p: float) -> Candidates:
    """Keep the tokens at least ``min_p`` times as likely as the likeliest.

    Source:
        Nguyen et al. 2024, https://arxiv.org/abs/2407.01082
    """
    masses = found.masses()
    return found.only(masses >= min_p * masses.max())


def keep_typical(found: Candidates, typical_p: float) -> Candidates:
    """Keep the tokens whose surprise is nearest the entropy, up to a mass of ``typical_p``.

    Source:
        Meister et al. 2023, https://arxiv.org/abs/2202.00666
    """
    found = found.only(found.scores > -math.inf)
    logprobs = found.scores - np.log(np.exp(found.scores).sum())
    masses = np.exp(logprobs)
    entropy = -(logprobs * masses).sum()
    distances = np.abs(-logprobs - entropy)
    last = distances[_nearest(distances, masses, typical_p)].max()
    return found.only(distances <= last)


def _nearest(distances: Floats, masses: Floats, wanted: float) -> Places:
    """The places of the nearest tokens that reach a mass; those at one distance in their order.

    Tokens are counted in bins first, so that only one bin needs sorting: sorting a whole vocabulary
    would take longer than the model.
    """
    farthest = float(distances.max(where=np.isfinite(distances), initial=0.0)) or 1.0
    bins = np.minimum(distances * ((_NUM_BINS - 1) / farthest), _NUM_BINS).astype(np.int64)
    reached = np.bincount(bins, weights=masses).cumsum()
    last = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
    inside = np.flatnonzero(bins == last)
    inside = inside[np.argsort(distances[inside], kind="stable")]
    before = reached[last - 1] if last else 0.0
    # A token is taken if those before it do not reach the mass alone.
    num_taken = 1 + int((before + masses[inside].cumsum(dtype=np.float64)[:-1] < wanted).sum())
    return np.sort(np.concatenate([np.flatnonzero(bins < last), inside[:num_taken]]))


def draw(scores: Floats, uniform: float) -> int:
    """Draw a token of a whole row by inverting the distribution function.

    Args:
        scores: Less the highest of them, [V].
        uniform: In [0, 1).

    Returns:
        Its id.
    """
    weights = np.exp(scores)
    # Adding up 50,000 numbers one after another takes longer than all else here: first by blocks.
    if len(weights) % _BLOCK:
        weights = np.pad(weights, (0, -len(weights) % _BLOCK))
    blocks = weights.reshape(-1, _BLOCK)
    reached = blocks.sum(axis=1).cumsum(dtype=np.float64)
    target = reached[-1] * uniform
    # "right": the first whose cumulative mass exceeds the target, so none without mass.
    block = int(np.searchsorted(reached, target, side="right"))
    if block == len(reached):  # the product rounded up to the whole mass
        return int(np.flatnonzero(weights)[-1])
    inside = blocks[block].cumsum(dtype=np.float64)
    target -= reached[block - 1] if block else 0.0
    place = int(np.searchsorted(inside, target, side="right"))
    if place < _BLOCK:
        return block * _BLOCK + place
    # Rounding: the block's mass was a little less than its sum.
    return block * _BLOCK + int(np.flatnonzero(blocks[block])[-1])
