"""The reference is transformers' own logits processors and ``generate``."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.errors import EngineError
from luthier.inference.sampling.distribution import candidates_of, draw_rows
from luthier.inference.sampling.sampler import (
    Sampler,
    choose_together,
    likeliest,
    logprob_and_rank,
)

VOCAB_SIZE = 61
EOS = (3, 7)
PROMPT = (5, 9, 9, 20)


def logits_for(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def sampler_after(sampling: SamplingParams, generated: list[int]) -> Sampler:
    sampler = Sampler(sampling, prior_token_ids=PROMPT, eos_token_ids=EOS)
    for token_id in generated:
        sampler.remember(token_id)
    return sampler


def transformers_scores(
    sampling: SamplingParams, generated: list[int], logits: torch.Tensor
) -> torch.Tensor:
    """The processors that ``generate`` would build for these parameters, in its order."""
    eos = list(EOS)
    processors = LogitsProcessorList()
    if sampling.repetition_penalty not in (None, 0.0, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_new_tokens:
        processors.append(
            MinNewTokensLengthLogitsProcessor(len(PROMPT), sampling.min_new_tokens, eos)
        )
    if sampling.exponential_decay_length_penalty:
        penalty = sampling.exponential_decay_length_penalty
        processors.append(ExponentialDecayLengthPenalty(penalty, eos, len(PROMPT)))
    if sampling.is_sampling:
        if sampling.temperature not in (None, 1.0):
            processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.typical_p is not None and sampling.typical_p < 1.0:
            processors.append(TypicalLogitsWarper(sampling.typical_p))
    return processors(torch.tensor([[*PROMPT, *generated]]), logits[None].clone())[0]


CASES = {
    "greedy": {},
    "repetition": {"repetition_penalty": 1.7},
    "rewarded repetition": {"repetition_penalty": 0.4},
    "repetition 0 is none": {"repetition_penalty": 0.0},
    "min_new_tokens not reached": {"min_new_tokens": 4},
    "min_new_tokens reached": {"min_new_tokens": 3},
    "decay not begun": {"exponential_decay_length_penalty": (3, 1.5)},
    "decay begun": {"exponential_decay_length_penalty": (1, 1.5)},
    "decay that hinders the end": {"exponential_decay_length_penalty": (0, 0.5)},
    "plain sampling": {"decoding_method": SAMPLING},
    "temperature": {"decoding_method": SAMPLING, "temperature": 0.3},
    "hot": {"decoding_method": SAMPLING, "temperature": 4.0},
    "top_k": {"decoding_method": SAMPLING, "top_k": 5},
    "top_k 0 is all": {"decoding_method": SAMPLING, "top_k": 0},
    "top_k above the vocabulary": {"decoding_method": SAMPLING, "top_k": 1000},
    "top_p": {"decoding_method": SAMPLING, "top_p": 0.8},
    "tiny top_p": {"decoding_method": SAMPLING, "top_p": 1e-6},
    "typical_p": {"decoding_method": SAMPLING, "typical_p": 0.6},
    "top_k and top_p": {"decoding_method": SAMPLING, "top_k": 12, "top_p": 0.7},
    "all": {
        "decoding_method": SAMPLING,
        "temperature": 1.4,
        "top_k": 30,
        "top_p": 0.95,
        "typical_p": 0.9,
        "repetition_penalty": 1.3,
        "min_new_tokens": 5,
        "exponential_decay_length_penalty": (2, 1.1),
        "max_new_tokens": 20,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_scores_give_the_distribution_of_transformers_processors(case: str, seed: int) -> None:
    sampling = SamplingParams(**CASES[case])
    generated = [11, 20, 3]
    logits = logits_for(seed)
    ours = sampler_after(sampling, generated).ruled(logits)
    theirs = transformers_scores(sampling, generated, logits)
    if sampling.is_sampling:
        shifted = (ours - ours.max()) / (sampling.temperature or 1.0)
        found = candidates_of(shifted.numpy(), sampling)
        ours = torch.full_like(ours, -math.inf)
        ours[found.ids] = torch.from_numpy(found.scores)
    assert torch.equal(ours == -math.inf, theirs == -math.inf)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", [case for case in CASES if "decoding_method" not in CASES[case]])
def test_greedy_takes_the_highest_processed_score(case: str) -> None:
    sampling = SamplingParams(**CASES[case])
    logits = logits_for(1)
    chosen = sampler_after(sampling, [11, 20, 3]).choose(logits)
    assert chosen == int(transformers_scores(sampling, [11, 20, 3], logits).argmax())


def test_sampling_parameters_do_nothing_under_greedy() -> None:
    sampling = SamplingParams(temperature=0.01, top_k=1, top_p=0.1, typical_p=0.1, seed=4)
    logits = logits_for(2)
    assert sampler_after(sampling, []).choose(logits) == int(logits.argmax())


def test_draws_follow_the_distribution() -> None:
    logits = logits_for(3)[:8]
    sampling = SamplingParams(decoding_method=SAMPLING)
    num_draws = 4000
    counts = torch.zeros(8)
    for index in range(num_draws):
        ((token_id, _),) = draw_rows([logits], [sampling], [(index + 0.5) / num_draws])
        counts[token_id] += 1
    # Evenly spaced numbers hit each token in proportion, to within one draw.
    assert (counts - logits.softmax(-1) * num_draws).abs().max() <= 1.0


def test_seeds_spread_draws_like_the_distribution() -> None:
    logits = logits_for(3)[:6]
    counts = torch.zeros(6)
    for seed in range(3000):
        sampling = SamplingParams(decoding_method=SAMPLING, seed=seed)
        counts[Sampler(sampling, prior_token_ids=(), eos_token_ids=(0,)).choose(logits)] += 1
    expected = logits.softmax(-1) * 3000
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 25  # 5 degrees of freedom: p = 1e-4; the seeds are fixed


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_mass_is_never_drawn(uniform: float) -> None:
    scores = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    ((token_id, _),) = draw_rows([scores], [SamplingParams(decoding_method=SAMPLING)], [uniform])
    assert token_id in (1, 3)


def test_same_seed_same_tokens_and_other_seed_others() -> None:
    def tokens(seed: int) -> list[int]:
        sampling = SamplingParams(decoding_method=SAMPLING, seed=seed, temperature=2.0)
        sampler = Sampler(sampling, prior_token_ids=(), eos_token_ids=EOS)
        return [sampler.choose(logits_for(step)) for step in range(30)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(5) != tokens(5 + 2**32), "the upper bits of a seed count too"


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, seed=1)
    before = torch.get_rng_state()
    first = sampler_after(sampling, []).choose(logits_for(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    assert sampler_after(sampling, []).choose(logits_for(1)) == first


def test_a_seed_is_drawn_for_sampling_only() -> None:
    drawn = {sampler_after(SamplingParams(decoding_method=SAMPLING), []).seed for _ in range(8)}
    assert len(drawn) > 1
    assert None not in drawn
    assert sampler_after(SamplingParams(), []).seed is None
    assert sampler_after(SamplingParams(seed=3), []).seed == 3


@pytest.mark.parametrize("decoding_method", ["GREEDY", SAMPLING])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(decoding_method: str, bad: float) -> None:
    logits = logits_for(1)
    logits[17] = bad
    with pytest.raises(EngineError, match="no usable score for token 1"):
        sampler_after(SamplingParams(decoding_method=decoding_method), []).choose(logits)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30])
def test_extreme_temperatures_still_choose(temperature: float) -> None:
    sampling = SamplingParams(decoding_method=SAMPLING, temperature=temperature, top_p=0.9)
    logits = logits_for(1)
    chosen = sampler_after(sampling, []).choose(logits)
    assert temperature > 1 or chosen == int(logits.argmax())


def test_a_huge_decay_ends_the_sequence_instead_of_overflowing() -> None:
    sampling = SamplingParams(exponential_decay_length_penalty=(0, 1e10))
    generated = [11] * 200
    assert sampler_after(sampling, generated).choose(logits_for(1)) in EOS


def test_the_likeliest_of_many_rows_is_that_of_each() -> None:
    rows = [logits_for(seed) for seed in range(6)]
    rows[2] = rows[2].bfloat16()
    rows[4][9] = math.nan
    found = likeliest(rows)
    assert [index for index, _ in found] == [int(row.argmax()) for row in rows]
    assert [math.isnan(score) for _, score in found] == [False] * 4 + [True, False]
    assert found[0][1] == float(rows[0].max())


def test_rows_that_choose_together_choose_what_each_chooses_alone() -> None:
    cases = [SamplingParams(**{"seed": n, **case}) for n, case in enumerate(CASES.values())]
    together = [sampler_after(sampling, []) for sampling in cases]
    alone = [sampler_after(sampling, []) for sampling in cases]
    for step in range(5):
        rows = [logits_for(100 * step + n) for n in range(len(cases))]
        first = choose_together(together, rows)
        assert choose_together(together, rows) == first, "asked again, no further number is drawn"
        for sampler, other, row, best in zip(together, alone, rows, first, strict=True):
            token_id = sampler.choose(row, best=best)
            assert token_id == other.choose(row)
            sampler.remember(token_id)
            other.remember(token_id)


def test_one_broken_row_of_many_is_refused_alone() -> None:
    samplers = [
        sampler_after(SamplingParams(decoding_method=method, seed=1), [])
        for method in ("GREEDY", SAMPLING, "GREEDY", SAMPLING)
    ]
    rows = [logits_for(seed) for seed in range(4)]
    expected = choose_together(samplers, rows)
    rows[0] = rows[0] * math.nan
    rows[1] = rows[1] * math.nan
    got = choose_together(samplers, rows)
    assert got[2:] == expected[2:]
    for place in (0, 1):
        with pytest.raises(EngineError, match="no usable score for token 1"):
            samplers[place].choose(rows[place], best=got[place])


def test_logprobs_are_those_of_log_softmax_and_rank_1_is_the_likeliest() -> None:
    logits = torch.stack([logits_for(seed) for seed in range(4)])
    ids = torch.tensor([0, int(logits[1].argmax()), int(logits[2].argmin()), 33])
    measured = logprob_and_rank(logits, ids)
    expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([pair[0] for pair in measured]), expected)
    ranks = [pair[1] for pair in measured]
    order = logits.argsort(dim=-1, descending=True)
    assert ranks == [int((order[row] == ids[row]).nonzero()) + 1 for row in range(4)]
    assert ranks[1:3] == [1, VOCAB_SIZE]
