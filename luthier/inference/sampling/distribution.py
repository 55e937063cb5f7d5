"""What sampling does to scores: temperature, the sets of tokens that may be drawn, the draw.

Each function is one of transformers' warpers for one row, in the order in which ``generate``
applies them, so that a sampled distribution is the same as there. Scores are float32 on the CPU:
drawing takes many small looks at them, each of which would stop a GPU.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from luthier.data_model.sampling import SamplingParams

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.int64]

_NUM_BINS = 1024
_BLOCK = 128
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
    values = scores.numpy()
    num_dropped = len(values) - top_k
    if num_dropped <= 0:
        return scores
    return _only(scores, np.flatnonzero(values >= np.partition(values, num_dropped)[num_dropped]))


def keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches ``top_p``.

    Source:
        Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
    """
    masses = scores.softmax(dim=-1).numpy()
    # Tokens below this have less than 1 - top_p together, so the set lies among the others; sorting
    # a whole vocabulary would take longer than the model.
    among = np.flatnonzero(masses >= (1 - top_p) / len(masses))
    order = among[np.argsort(-masses[among], kind="stable")]
    # A token stays if those before it do not reach the mass alone.
    num_kept = 1 + int((masses[order].cumsum()[:-1] < top_p).sum())
    return _only(scores, order[:num_kept])


def keep_min_p(scores: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep the tokens at least ``min_p`` times as likely as the likeliest.

    Source:
        Nguyen et al. 2024, https://arxiv.org/abs/2407.01082
    """
    masses = scores.softmax(dim=-1).numpy()
    return _only(scores, np.flatnonzero(masses >= min_p * masses.max()))


def keep_typical(scores: torch.Tensor, typical_p: float) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest the entropy, up to a mass of ``typical_p``.

    Source:
        Meister et al. 2023, https://arxiv.org/abs/2202.00666
    """
    logprobs = scores.log_softmax(dim=-1)
    masses = logprobs.exp()
    entropy = -(logprobs * masses).nansum()
    possible = np.flatnonzero(scores.numpy() > -math.inf)
    distances = (-logprobs - entropy).abs().numpy()[possible]
    farthest = _distance_of_mass(distances, masses.numpy()[possible], typical_p)
    return _only(scores, possible[distances <= farthest])


def _distance_of_mass(distances: Floats, masses: Floats, wanted: float) -> float:
    """The distance within which the tokens have the mass ``wanted``.

    Tokens are counted in bins first, so that only one bin needs sorting.
    """
    longest = float(distances.max()) or 1.0
    bins = (distances * ((_NUM_BINS - 1) / longest)).astype(np.int64)
    reached = np.bincount(bins, weights=masses).cumsum()
    last = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
    inside = np.flatnonzero(bins == last)
    inside = inside[np.argsort(distances[inside], kind="stable")]
    before = reached[last - 1] if last else 0.0
    num_before = int((before + masses[inside].cumsum(dtype=np.float64) < wanted).sum())
    return float(distances[inside[min(num_before, len(inside) - 1)]])


def _only(scores: torch.Tensor, kept: Places) -> torch.Tensor:
    places = torch.from_numpy(kept)
    return torch.full_like(scores, -math.inf).index_copy(0, places, scores[places])


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
    weights = (scores - scores.amax()).exp_()
    # Adding up 50,000 numbers one after another takes longer than all else here: first by blocks.
    blocks = pad(weights, (0, -len(weights) % _BLOCK)).view(-1, _BLOCK)
    reached = blocks.sum(dim=-1).numpy().cumsum(dtype=np.float64)
    target = reached[-1] * uniform
    # "right": the first whose cumulative mass exceeds the target, so none without mass.
    block = int(np.searchsorted(reached, target, side="right"))
    if block == len(reached):  # the product rounded up to the whole mass
        return int(weights.nonzero()[-1])
    inside = blocks[block].numpy().cumsum(dtype=np.float64)
    target -= reached[block - 1] if block else 0.0
    place = int(np.searchsorted(inside, target, side="right"))
    if place < _BLOCK:
        return block * _BLOCK + place
    # Rounding: the block's mass was a little less than its sum.
    return block * _BLOCK + int(blocks[block].nonzero()[-1])
