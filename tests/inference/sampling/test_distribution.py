"""The reference is transformers' own warpers, one by one and in ``generate``'s order."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.inference.sampling.distribution import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    shape_distribution,
)

NO_IDS = torch.zeros(1, 0, dtype=torch.long)


def random_scores(seed: int, size: int = 1200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * (1 + seed % 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *[(lambda s, p=p: keep_min_p(s, p), MinPLogitsWarper(p)) for p in (0.01, 0.2, 0.9, 1.0)],
        *[(lambda s, k=k: keep_top_k(s, k), TopKLogitsWarper(k)) for k in (1, 7, 5000)],
        *[(lambda s, p=p: keep_top_p(s, p), TopPLogitsWarper(p)) for p in (0.01, 0.6, 0.999)],
        *[(lambda s, p=p: keep_typical(s, p), TypicalLogitsWarper(p)) for p in (0.05, 0.5, 0.95)],
    ],
)
def test_each_set_is_the_one_that_transformers_keeps(ours, theirs, seed: int) -> None:
    scores = random_scores(seed)
    assert torch.equal(ours(scores.clone()), theirs(NO_IDS, scores[None].clone())[0])


@pytest.mark.parametrize("seed", range(10))
def test_everything_together_is_transformers_distribution(seed: int) -> None:
    sampling = SamplingParams(
        decoding_method=SAMPLING, temperature=1.7, top_k=400, top_p=0.9, min_p=0.02, typical_p=0.8
    )
    scores = random_scores(seed)
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(1.7),
            TopKLogitsWarper(400),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
            TypicalLogitsWarper(0.8),
        ]
    )
    ours, theirs = shape_distribution(scores, sampling), warpers(NO_IDS, scores[None])[0]
    assert torch.equal(ours == -math.inf, theirs == -math.inf)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_min_p_0_is_none() -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, min_p=0.0)
    scores = random_scores(1)
    assert torch.equal(shape_distribution(scores, sampling), scores)


def test_a_draw_at_either_end_is_the_first_or_the_last_token_that_can_come() -> None:
    scores = torch.tensor([-math.inf, 0.0, 1.0, -math.inf])
    assert draw(scores, 0.0) == 1
    assert draw(scores, math.nextafter(1, 0)) == 2
