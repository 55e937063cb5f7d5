"""The reference is transformers' own warpers, one by one and in ``generate``'s order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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
    Candidates,
    Floats,
    candidates_of,
    draw_rows,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
)

NO_IDS = torch.zeros(1, 0, dtype=torch.long)


def random_scores(seed: int, size: int = 1200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * (1 + seed % 4)


def shifted(scores: torch.Tensor, sampling: SamplingParams) -> Floats:
    """Scores as they are drawn from."""
    found: Floats = ((scores - scores.max()) / (sampling.temperature or 1.0)).numpy()
    return found


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
    kept = ours(Candidates(np.arange(len(scores)), (scores - scores.max()).numpy()))
    expected = theirs(NO_IDS, scores[None].clone())[0]
    assert kept.ids.tolist() == (expected > -math.inf).nonzero()[:, 0].tolist()
    assert np.array_equal(kept.scores, (scores - scores.max()).numpy()[kept.ids])


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
    theirs = warpers(NO_IDS, scores[None])[0]
    assert_distribution(candidates_of(shifted(scores, sampling), sampling), theirs)


def assert_distribution(ours: Candidates, theirs: torch.Tensor) -> None:
    assert ours.ids.tolist() == (theirs > -math.inf).nonzero()[:, 0].tolist()
    torch.testing.assert_close(torch.from_numpy(ours.masses()), theirs.softmax(-1)[ours.ids])


def test_min_p_0_is_none() -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, min_p=0.0)
    assert len(candidates_of(shifted(random_scores(1), sampling), sampling).ids) == 1200


#: One after the other, and some together.
SETTINGS: list[dict[str, Any]] = [
    {}, {"temperature": 0.3}, {"top_k": 1}, {"top_k": 40}, {"top_k": 900, "temperature": 2.0},
    {"top_p": 0.5}, {"top_p": 0.95, "temperature": 1.3}, {"min_p": 0.1}, {"typical_p": 0.7},
    {"top_k": 60, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9}, {"top_p": 1.0, "min_p": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("size", [61, 1200, 40_000])
def test_rows_of_all_settings_together_draw_what_each_draws_alone(size: int) -> None:
    samplings = [SamplingParams(decoding_method=SAMPLING, **each) for each in SETTINGS]
    scores = torch.stack([random_scores(seed, size) for seed in range(len(samplings))])
    before = scores.clone()
    for uniform in (0.0, 0.37, 0.9, 1 - 2**-53):
        together = draw_rows(list(scores), samplings, [uniform] * len(samplings))
        alone = [
            draw_rows([scores[row]], [sampling], [uniform])[0]
            for row, sampling in enumerate(samplings)
        ]
        assert together == alone
        backwards = draw_rows(list(scores.flip(0)), samplings[::-1], [uniform] * len(samplings))
        assert backwards[::-1] == together
        for (token_id, best), row, sampling in zip(together, scores, samplings, strict=True):
            assert best == float(row.max())
            if uniform < 0.99:  # beyond, float32 has no say
                assert token_id == inverted(
                    candidates_of(shifted(row, sampling), sampling), uniform
                )
    assert torch.equal(scores, before)


def inverted(found: Candidates, uniform: float) -> int:
    """The first token whose share, with those before it, exceeds a number; in float64."""
    weights = np.exp(found.scores.astype(np.float64))
    reached = weights.cumsum() / weights.sum()
    place = min(int((reached <= uniform).sum()), len(reached) - 1)
    return int(found.ids[place])


def test_a_broken_row_does_not_touch_the_others() -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, top_p=0.9)
    scores = torch.stack([random_scores(seed) for seed in range(3)])
    expected = draw_rows(list(scores), [sampling] * 3, [0.4] * 3)
    scores[1, 7] = math.nan
    got = draw_rows(list(scores), [sampling] * 3, [0.4] * 3)
    assert [got[0], got[2]] == [expected[0], expected[2]]
    assert math.isnan(got[1][1])


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_draw_at_either_end_is_the_first_or_the_last_token_that_can_come(
    settings: dict[str, Any],
) -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, **settings)
    scores = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf]])
    first, last = (
        draw_rows(list(scores), [sampling], [u])[0][0] for u in (0.0, math.nextafter(1, 0))
    )
    found = candidates_of(shifted(scores[0], sampling), sampling)
    ids = [token for token in found.ids if token in (1, 2)]
    assert (first, last) == (ids[0], ids[-1])
