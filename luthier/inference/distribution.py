"""What sampling does to scores: temperature, the sets of tokens that may be drawn, the draw.

Each function is one of transformers' warpers for one row, in the order in which ``generate``
applies them, so that a sampled distribution is the same as there.
"""

from __future__ import annotations

import math

import torch

from luthier.data_model.sampling import SamplingParams

_SMALL_NUCLEUS = 512
_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny


def shape_distribution(scores: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Apply temperature, top-k, top-p, min-p and typical-p, in this order."""
    if sampling.temperature is not None and sampling.temperature != 1.0:
        # Shifted first, so that a tiny temperature gives -inf to the others and never inf or NaN.
        scores = (scores - scores.max()) / max(sampling.temperature, _SMALLEST_TEMPERATURE)
    if sampling.top_k:
        scores = keep_top_k(scores, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.min_p:
        scores = keep_min_p(scores, sampling.min_p)
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


def keep_min_p(scores: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep the tokens at least ``min_p`` times as likely as the likeliest.

    Source:
        Nguyen et al. 2024, https://arxiv.org/abs/2407.01082
    """
    probabilities = scores.softmax(dim=-1)
    return scores.masked_fill(probabilities < min_p * probabilities.max(), -math.inf)


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
