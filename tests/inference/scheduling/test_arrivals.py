"""Rows whose adapter comes later than they do."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import pytest
import torch
from fixtures.engine_answers import OneAtATime, require_answers_alone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora_factors import LoraFactors
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SAMPLING as DRAWN
from luthier.data_model.sampling import SamplingParams
from luthier.errors import ArtifactError, CapacityError, EngineDownError, EngineError
from luthier.inference.base import FinishReason, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import disturb

SAMPLING = SamplingParams(max_new_tokens=6, min_new_tokens=6)
WAIT_SECONDS = 60


class SlowLora(LoraAdapter):
    """A LoRA whose tensors come when the test says so."""

    gate: threading.Event
    has_begun: threading.Event
    error: ArtifactError | None = None

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        self.has_begun.set()
        assert self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return super().linear_deltas()

    def delta_layers(self) -> frozenset[str]:
        return frozenset(self.factors)

    def snapshot(self) -> Self:
        return self  # a copy would have another gate, or none


def make_lora(base: BaseModel, *, seed: int, rank: int = 4) -> LoraAdapter:
    adapter = create_lora(base.model, LoraConfig(rank=rank), seed=seed)
    disturb(adapter, seed=seed, by=0.2)
    return adapter


def make_slow(base: BaseModel, *, seed: int) -> SlowLora:
    adapter: Any = make_lora(base, seed=seed)
    adapter.__class__ = SlowLora
    adapter.gate, adapter.has_begun = threading.Event(), threading.Event()
    return adapter  # type: ignore[no-any-return]


@pytest.fixture
def engine(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base)
    yield engine
    engine.close()


def generate(engine: BatchedEngine, adapter: LoraAdapter | None) -> list[int]:
    stream = engine.submit(GenerationRequest((5, 6, 7), SAMPLING, adapter))
    return [token.token_id for chunk in stream for token in chunk.tokens]


def test_loading_one_adapter_stops_nobody_else(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    known = make_lora(causal_base, seed=1)
    expected = generate(engine, known)
    slow = make_slow(causal_base, seed=2)
    stream = engine.submit(GenerationRequest((5, 6, 7), SAMPLING, slow))
    # The row waits for its adapter; the base and adapters that are there go on.
    assert engine.status().num_waiting == 1
    assert generate(engine, known) == expected
    assert generate(engine, None) != expected
    assert engine.status().num_waiting == 1
    slow.gate.set()
    got = [token.token_id for chunk in stream for token in chunk.tokens]
    assert got == generate(engine, make_lora(causal_base, seed=2))


def test_an_adapter_that_cannot_be_read_ends_its_own_stream(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    slow = make_slow(causal_base, seed=3)
    slow.error = ArtifactError("adapter 'x' is damaged")
    stream = engine.submit(GenerationRequest((5, 6, 7), SAMPLING, slow))
    slow.gate.set()
    with pytest.raises(ArtifactError, match="damaged"):
        list(stream)
    assert len(generate(engine, None)) == 6
    assert engine.status().num_waiting == 0


def test_rows_of_an_adapter_whose_disk_hangs_are_told_and_all_others_go_on(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    other = make_lora(causal_base, seed=1)
    readers = engine._arrivals.pool._readers  # type: ignore[union-attr]
    now = 1000.0
    readers.clock = lambda: now
    slow = make_slow(causal_base, seed=2)
    request = GenerationRequest((5, 6, 7), SAMPLING, slow)
    streams = [engine.submit(request) for _ in range(2)]
    assert slow.has_begun.wait(WAIT_SECONDS)
    now += 121
    engine._arrivals.pool.look()  # type: ignore[union-attr]
    for stream in streams:
        with pytest.raises(EngineDownError, match="adapter 'lora' could not be read in 120 s"):
            list(stream)
    with pytest.raises(EngineDownError, match="'lora'"):
        engine.submit(request)
    status = engine.status()
    assert (status.is_healthy, status.num_running, status.num_waiting) == (True, 0, 0)
    assert generate(engine, other) != generate(engine, None), "it was read meanwhile"
    engine.close()
    slow.gate.set()


def test_closing_ends_a_row_that_waits_for_its_adapter(causal_base: BaseModel) -> None:
    engine = BatchedEngine(causal_base)
    slow = make_slow(causal_base, seed=4)
    stream = engine.submit(GenerationRequest((5, 6, 7), SAMPLING, slow))
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert [chunk.finish_reason for chunk in stream] == [FinishReason.CANCELLED]
    slow.gate.set()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


def test_more_adapters_than_fit_take_turns_and_all_are_answered(causal_base: BaseModel) -> None:
    adapters = [make_lora(causal_base, seed=seed) for seed in range(12)]
    num_bytes = sum(tensor.nbytes for tensor in adapters[0].peft_state().values())
    engine = BatchedEngine(causal_base, EngineOptions(max_adapter_bytes=3 * num_bytes))
    roomy = BatchedEngine(causal_base)
    chosen = [adapters[index % 12] for index in range(36)]
    streams = [engine.submit(GenerationRequest((5, 6, 7), SAMPLING, each)) for each in chosen]
    got = [[token.token_id for chunk in stream for token in chunk.tokens] for stream in streams]
    assert got == [generate(roomy, each) for each in chosen]
    pool = engine._arrivals.pool
    assert pool is not None
    assert pool.status().device_bytes <= 3 * num_bytes
    assert not any(entry.pins for entry in pool._residents._entries.values()), "every row let go"
    engine.close()
    roomy.close()


def test_one_that_is_retuned_and_dropped_while_a_request_comes_is_no_fault_of_the_request(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what the device has and the hold on it, the worst happens."""
    adapter, other = make_lora(causal_base, seed=1), make_lora(causal_base, seed=2)
    num_bytes = sum(tensor.nbytes for tensor in adapter.peft_state().values())
    engine = BatchedEngine(causal_base, EngineOptions(max_adapter_bytes=num_bytes))
    before = generate(engine, adapter)
    keeps = engine._arrivals.keeps
    happenings = [lambda: generate(engine, other), lambda: disturb(adapter, seed=3, by=0.5)]

    def slow(key: str) -> bool:
        is_kept = keeps(key)
        while is_kept and happenings:
            happenings.pop(0)()
        return is_kept

    monkeypatch.setattr(engine._arrivals, "keeps", slow)
    got = generate(engine, adapter)
    assert not happenings
    assert got != before
    roomy = BatchedEngine(causal_base)
    assert got == generate(roomy, adapter)
    engine.close()
    roomy.close()


def test_an_adapter_that_never_fits_is_refused_with_both_sizes(causal_base: BaseModel) -> None:
    engine = BatchedEngine(causal_base, EngineOptions(max_adapter_bytes=1000))
    with pytest.raises(CapacityError, match=r"\d+ bytes.* 1000 bytes"):
        generate(engine, make_lora(causal_base, seed=1))
    engine.close()


def make_own_head(base: BaseModel, *, seed: int) -> LoraAdapter:
    config = LoraConfig(rank=2, modules_to_save=("lm_head", "model.norm"))
    adapter = create_lora(base.model, config, seed=seed)
    disturb(adapter, seed=seed, by=0.2)
    return adapter


def test_layers_of_an_adapters_own_count_with_all_their_bytes(causal_base: BaseModel) -> None:
    adapters = [make_own_head(causal_base, seed=seed) for seed in range(3)]
    num_bytes = sum(tensor.nbytes for tensor in adapters[0].peft_state().values())
    engine = BatchedEngine(causal_base, EngineOptions(max_adapter_bytes=2 * num_bytes))
    answers = [generate(engine, each) for each in adapters]
    status = engine.adapter_status()
    assert (status.num_on_device, status.device_bytes) == (2, 2 * num_bytes)
    assert generate(engine, adapters[0]) == answers[0], "dropped, and brought again"
    assert engine.adapter_status().num_loads == 4
    assert engine._whole_models is None
    engine.close()


def test_layers_that_alone_take_more_than_all_may_run_beside_the_batch(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    adapter = make_own_head(causal_base, seed=1)
    num_bytes = sum(each.nbytes for each in adapter.whole_modules()["lm_head"].parameters())
    small = BatchedEngine(causal_base, EngineOptions(max_adapter_bytes=num_bytes))
    assert not small.keeps_deltas(adapter)
    assert generate(small, adapter) == generate(engine, adapter)
    assert engine._whole_models is None
    assert small._whole_models is not None
    assert small.adapter_status().num_loads == 0
    small.close()


def test_a_row_cancelled_while_its_adapter_comes_lets_go_of_it(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    slow = make_slow(causal_base, seed=5)
    stream = engine.submit(GenerationRequest((5, 6, 7), SAMPLING, slow))
    stream.cancel()
    slow.gate.set()
    assert [chunk.finish_reason for chunk in stream] == [FinishReason.CANCELLED]
    generate(engine, None)
    assert engine._arrivals.pool is not None
    assert not any(entry.pins for entry in engine._arrivals.pool._residents._entries.values())
    assert len(engine._arrivals) == 0


def test_an_adapter_that_gives_nan_ends_its_own_row_only(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    broken = make_lora(causal_base, seed=6)
    with torch.no_grad():
        broken.factors["model.layers.0.mlp.down_proj"].lora_b.fill_(torch.nan)
    good = make_lora(causal_base, seed=7)
    alone = generate(engine, good)
    adapters = [good, broken, None, good]
    streams = [engine.submit(GenerationRequest((5, 6, 7), SAMPLING, each)) for each in adapters]
    answers: list[Any] = []
    for stream in streams:
        try:
            answers.append([token.token_id for chunk in stream for token in chunk.tokens])
        except Exception as error:  # noqa: BLE001  whatever it is, it must be the broken row's
            answers.append(error)
    assert answers[0] == answers[3] == alone
    assert len(answers[2]) == 6
    assert isinstance(answers[1], Exception)


@pytest.mark.parametrize("path", ["lm_head", "model.norm"])
def test_a_layer_of_its_own_that_gives_nan_ends_its_own_row_only(
    path: str, engine: BatchedEngine, causal_base: BaseModel
) -> None:
    broken, good = make_own_head(causal_base, seed=6), make_own_head(causal_base, seed=7)
    with torch.no_grad():
        broken.whole_modules()[path].weight.fill_(torch.nan)  # type: ignore[operator,union-attr]
    alone = [generate(engine, adapter) for adapter in (good, None)]
    adapters = [good, broken, None, broken]
    streams = [engine.submit(GenerationRequest((5, 6, 7), SAMPLING, each)) for each in adapters]
    for stream in (streams[1], streams[3]):
        with pytest.raises(EngineError, match="no usable score"):
            list(stream)
    got = [[t.token_id for chunk in streams[n] for t in chunk.tokens] for n in (0, 2)]
    assert got == alone


@pytest.fixture(scope="module")
def adapters(causal_base: BaseModel, make_prompt: Callable[..., Adapter]) -> list[Adapter | None]:
    """Every kind that shares a pass."""
    configs = [
        LoraConfig(rank=2),
        LoraConfig(rank=3, target_modules=("q_proj", "v_proj")),
        LoraConfig(rank=4, use_rslora=True, target_modules=("down_proj",)),
        LoraConfig(rank=2, use_dora=True),
        LoraConfig(rank=24),
        LoraConfig(rank=2, modules_to_save=("model.norm", "0.mlp.up_proj")),
    ]
    made: list[Adapter | None] = [None, make_prompt(causal_base, seed=1, num_virtual_tokens=9)]
    for seed, config in enumerate(configs):
        adapter = create_lora(causal_base.model, config, seed=seed)
        disturb(adapter, seed=seed, by=0.1)
        made.append(adapter)
    return made


@pytest.fixture(scope="module")
def crowded(causal_base: BaseModel, adapters: list[Adapter | None]) -> Iterator[BatchedEngine]:
    """Room for the largest adapter, or a few small ones, and for few tokens."""
    num_bytes = max(
        sum(tensor.nbytes for tensor in each.peft_state().values())
        for each in adapters
        if isinstance(each, LoraAdapter)
    )
    options = EngineOptions(
        max_running=5,
        max_kv_bytes=160 * 256,
        max_step_tokens=24,
        max_adapter_bytes=num_bytes,
        merge_after_steps=0,
    )
    engine = BatchedEngine(causal_base, options)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(causal_base: BaseModel) -> Iterator[PlainEngine]:
    engine = PlainEngine(causal_base, EngineOptions(num_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone(causal_base: BaseModel) -> Iterator[OneAtATime]:
    engine = OneAtATime(causal_base, EngineOptions(merge_after_steps=0))
    yield engine
    engine.close()


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6))
def test_any_mix_of_adapters_that_come_and_go_equals_each_request_alone(
    seed: int,
    adapters: list[Adapter | None],
    alone: OneAtATime,
    plain: PlainEngine,
    crowded: BatchedEngine,
) -> None:
    rng = random.Random(seed)
    requests = []
    for _ in range(14):
        drawn: dict[str, Any] = {}
        if rng.random() < 0.5:
            drawn = {"decoding_method": DRAWN, "seed": rng.randrange(1000), "top_k": 20}
        sampling = SamplingParams(max_new_tokens=rng.randint(1, 30), **drawn)
        ids = tuple(rng.randrange(5, 400) for _ in range(rng.randint(1, 60)))
        requests.append(GenerationRequest(ids, sampling, rng.choice(adapters)))
    streams = [crowded.submit(request) for request in requests]
    dropped = set(rng.sample(range(14), 3))
    for index in dropped:
        streams[index].cancel()
    require_answers_alone(streams, requests, alone=alone, plain=plain, dropped=dropped)
    assert crowded._whole_models is None
