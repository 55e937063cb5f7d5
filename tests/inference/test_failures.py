"""What breaks a row ends that row; what breaks the engine is told to everybody, and to health."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures.lora_models import disturb
from torch import nn

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.errors import ConflictError, EngineError, InvalidInputError
from luthier.inference.base import Engine, FinishReason, GenerationRequest, TokenStream
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.deltas.layer_changes import changes_of
from luthier.inference.deltas.pool.adapter_pool import AdapterPool
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.row_forward import CausalRowForward
from luthier.inference.sampling import step_answers
from luthier.inference.sampling.prompt_lookup import PromptLookup
from luthier.inference.sampling.sampler import Sampler
from luthier.inference.scheduling.scheduler import Scheduler
from luthier.inference.sequences import GeneratedSequence
from luthier.inference.streaming import IncrementalDetokenizer
from luthier.resources.base_model import BaseModel

VICTIMS_SEED = 4242
OPTIONS = EngineOptions(max_running=3, max_kv_bytes=400 * 256, prompt_lookup_tokens=4)


@pytest.fixture
def engine(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base, OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def answers(causal_base: BaseModel) -> Iterator[list[list[int]]]:
    engine = PlainEngine(causal_base, EngineOptions(num_threads=1))
    yield [tokens_of(engine.submit(request)) for request in good_requests()]
    engine.close()


def good_requests() -> list[GenerationRequest]:
    prompts = [(7, 8, 9) * 8, (20, 21), (30,) * 40]
    return [GenerationRequest(ids, SamplingParams(max_new_tokens=12)) for ids in prompts]


def victim(adapter: Adapter | None = None) -> GenerationRequest:
    sampling = SamplingParams(
        max_new_tokens=20,
        min_new_tokens=20,
        decoding_method=SAMPLING,
        seed=VICTIMS_SEED,
        input_tokens=True,
        token_logprobs=True,
    )
    return GenerationRequest((11, 12, 13) * 7, sampling, adapter)


def tokens_of(stream: Any) -> list[int]:
    return [token.token_id for chunk in stream for token in chunk.tokens]


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_idle(engine: Engine) -> bool:
    status = engine.status()
    return status.num_running == status.num_waiting == 0


def is_victims(sequence: Any) -> bool:
    return bool(sequence.request.sampling.seed == VICTIMS_SEED)


def in_slices(runner: Any, slices: Any) -> bool:
    return any(is_victims(each.row.sequence) for each in slices)


def breaking(function: Callable[..., Any], is_meant: Callable[..., bool]) -> Callable[..., Any]:
    def broken(*arguments: Any, **named: Any) -> Any:
        if is_meant(*arguments):
            raise RuntimeError("deliberate")
        return function(*arguments, **named)

    return broken


#: What breaks for the victim alone.
PLACES: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "runner": (PackedRunner, "run", in_slices),
    "before the runner": (PackedRunner, "begin", in_slices),
    "sampler": (Sampler, "choose", lambda sampler, *_: sampler.seed == VICTIMS_SEED),
    "report": (GeneratedSequence, "report_prompt", lambda sequence, *_: is_victims(sequence)),
    "prefixes": (KvMemory, "keep", lambda memory, row: is_victims(row.sequence)),
    "deadline": (GeneratedSequence, "advance", lambda sequence, *_: is_victims(sequence)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_row_that_breaks_somewhere_ends_alone_and_frees_what_it_held(
    place: str,
    engine: BatchedEngine,
    answers: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name, is_meant = PLACES[place]
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name), is_meant))
    streams = [engine.submit(request) for request in (victim(), *good_requests(), victim())]
    for broken in (streams[0], streams[-1]):
        with pytest.raises(EngineError, match="generation failed: deliberate"):
            list(broken)
    assert [tokens_of(stream) for stream in streams[1:-1]] == answers
    wait_for(lambda: is_idle(engine))
    assert engine.status().is_healthy
    allocator = engine._runner.memory.allocator
    assert allocator.num_free == allocator.num_tokens


def test_a_detokenizer_that_breaks_ends_its_row_alone(
    engine: BatchedEngine, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[IncrementalDetokenizer] = []
    start = IncrementalDetokenizer.__init__
    monkeypatch.setattr(
        IncrementalDetokenizer,
        "__init__",
        lambda self, *arguments: (made.append(self), start(self, *arguments))[1],
    )
    push, flush = IncrementalDetokenizer.push, IncrementalDetokenizer.flush
    is_first = lambda self, *_: self is made[0]  # noqa: E731
    monkeypatch.setattr(IncrementalDetokenizer, "push", breaking(push, is_first))
    streams = [engine.submit(request) for request in (victim(), *good_requests())]
    with pytest.raises(EngineError, match="deliberate"):
        list(streams[0])
    assert [tokens_of(stream) for stream in streams[1:]] == answers

    made.clear()
    monkeypatch.setattr(IncrementalDetokenizer, "push", push)
    monkeypatch.setattr(IncrementalDetokenizer, "flush", breaking(flush, is_first))
    stream = engine.submit(victim())
    chunks = iter(stream)
    next(chunks)
    stream.cancel()
    with pytest.raises(EngineError, match="deliberate"):
        list(chunks)
    assert [tokens_of(engine.submit(request)) for request in good_requests()] == answers
    assert engine.status().is_healthy


def test_what_only_makes_steps_quicker_may_break(
    engine: BatchedEngine, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptLookup, "with_drafts", breaking(len, lambda *_: True))
    monkeypatch.setattr(step_answers, "choose_together", breaking(len, lambda *_: True))
    streams = [engine.submit(request) for request in good_requests()]
    assert [tokens_of(stream) for stream in streams] == answers


def make_lora(base: BaseModel, seed: int = 1) -> LoraAdapter:
    lora = create_lora(base.model, LoraConfig(rank=2), seed=seed)
    disturb(lora, seed=seed, by=0.2)
    return lora


@pytest.mark.parametrize("name", ["linear_deltas", "content_hash"])
def test_an_adapter_that_cannot_be_loaded_ends_its_rows_alone(
    name: str,
    engine: BatchedEngine,
    causal_base: BaseModel,
    answers: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool_threads = lambda *_: threading.current_thread().name.startswith("adapter-")  # noqa: E731
    method = getattr(LoraAdapter, name)
    monkeypatch.setattr(LoraAdapter, name, breaking(method, pool_threads))
    adapter = make_lora(causal_base)
    streams = [engine.submit(request) for request in (victim(adapter), *good_requests())]
    with pytest.raises(EngineError, match="loading the adapter failed: deliberate"):
        list(streams[0])
    assert [tokens_of(stream) for stream in streams[1:]] == answers
    monkeypatch.setattr(LoraAdapter, name, method)
    assert len(tokens_of(engine.submit(victim(adapter)))) == 20
    assert engine.status().is_healthy
    status = engine.adapter_status()
    assert status.num_on_device == 1
    assert status.device_bytes == engine._runner.deltas.num_bytes(changes_of(adapter))


def test_a_row_that_waits_for_an_adapter_may_leave_while_nothing_runs(
    engine: BatchedEngine, causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_read = threading.Event()
    deltas = LoraAdapter.linear_deltas

    def slow(self: LoraAdapter) -> Any:
        if threading.current_thread().name.startswith("adapter-reader"):
            assert is_read.wait(60)
        return deltas(self)

    monkeypatch.setattr(LoraAdapter, "linear_deltas", slow)
    adapter = make_lora(causal_base)
    try:
        left = engine.submit(victim(adapter))
        left.cancel()
        assert [chunk.finish_reason for chunk in left] == [FinishReason.CANCELLED]
        sampling = SamplingParams(max_new_tokens=5, max_time=0.05)
        late = engine.submit(GenerationRequest((5, 6), sampling, adapter))
        assert [chunk.finish_reason for chunk in late] == [FinishReason.TIME_LIMIT]
    finally:
        is_read.set()
    assert len(tokens_of(engine.submit(victim(adapter)))) == 20


def killing(
    error: BaseException, function: Callable[..., Any] = len, *, num_well: int = 0
) -> Callable[..., Any]:
    """Does what the function does so many times, then raises."""
    calls = itertools.count()

    def kill(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= num_well:
            raise error
        return function(*arguments, **named)

    return kill


class GivenPrefix(Adapter):
    """An adapter that is a prefix of keys and values, right or wrong."""

    method = "given_prefix"

    def __init__(self, key_values: torch.Tensor) -> None:
        self.key_values = nn.Parameter(key_values)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "key_values", self.key_values

    def soft_prompt(self) -> SoftPromptTensors:
        return SoftPromptTensors()

    def prefix_key_values(self) -> torch.Tensor:
        return self.key_values

    def peft_config(self) -> dict[str, Any]:
        return {}

    def peft_state(self) -> dict[str, torch.Tensor]:
        return {}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> GivenPrefix:
        return self


@pytest.mark.parametrize("changed", [{0: 198}, {1: 1}, {3: 3}])
def test_a_prefix_of_another_model_is_refused_with_both_shapes(
    changed: dict[int, int],
    engine: BatchedEngine,
    answers: list[list[int]],
) -> None:
    shape = engine._runner.memory.arena.shape
    right = [2 * shape.num_layers, shape.num_kv_heads, 4, shape.head_dim]
    wrong = [changed.get(place, size) for place, size in enumerate(right)]
    with pytest.raises(InvalidInputError, match=rf"has \d+ layers of .* has {shape.num_layers} la"):
        engine.submit(victim(GivenPrefix(torch.zeros(wrong))))
    assert tokens_of(engine.submit(victim(GivenPrefix(torch.zeros(right)))))
    assert [tokens_of(engine.submit(request)) for request in good_requests()] == answers


@pytest.mark.parametrize("tenant", ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\ud800", "\0"])
def test_whatever_a_tenant_is_called_its_rows_are_served(
    tenant: str, engine: BatchedEngine, answers: list[list[int]]
) -> None:
    requests = [replace(request, tenant=tenant) for request in good_requests()]
    assert [tokens_of(engine.submit(request)) for request in requests * 2] == answers * 2


def test_a_row_that_cannot_be_admitted_ends_alone_and_frees_what_it_held(
    engine: BatchedEngine, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_meant = lambda memory, row, held: is_victims(row.sequence)  # noqa: E731
    monkeypatch.setattr(KvMemory, "_restore", breaking(KvMemory._restore, is_meant))
    streams = [engine.submit(request) for request in (victim(), *good_requests())]
    with pytest.raises(EngineError, match="generation failed: deliberate"):
        list(streams[0])
    assert [tokens_of(stream) for stream in streams[1:]] == answers
    wait_for(lambda: is_idle(engine))
    assert engine.status().is_healthy
    allocator = engine._runner.memory.allocator
    wait_for(lambda: allocator.num_free == allocator.num_tokens)


def test_what_a_leaving_row_has_computed_need_not_be_kept(
    engine: BatchedEngine, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there is no memory for copies: the row is gone, and nobody else is harmed."""
    is_leaving = threading.Event()
    is_meant = lambda memory, row: is_victims(row.sequence) and is_leaving.is_set()  # noqa: E731
    monkeypatch.setattr(KvMemory, "keep", breaking(KvMemory.keep, is_meant))
    left = engine.submit(victim())
    chunks = iter(left)
    next(chunks)
    is_leaving.set()
    left.cancel()
    list(chunks)
    assert [tokens_of(engine.submit(request)) for request in good_requests()] == answers
    assert engine.status().is_healthy
    allocator = engine._runner.memory.allocator
    wait_for(lambda: allocator.num_free == allocator.num_tokens)


def submit_together(
    engine: BatchedEngine, requests: list[GenerationRequest], patch: pytest.MonkeyPatch
) -> list[TokenStream]:
    """All of them before any is planned."""
    have_come, plan = threading.Event(), Scheduler.plan
    patch.setattr(Scheduler, "plan", lambda self: plan(self) if have_come.is_set() else [])
    streams = [engine.submit(request) for request in requests]
    have_come.set()
    return streams


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (Scheduler, "plan", RuntimeError("no plan")),
        (Scheduler, "plan", AssertionError("freed twice?")),
        (PackedRunner, "run", SystemExit("killed")),
        (PackedRunner, "run", torch.AcceleratorError("device lost")),
        (Sampler, "choose", KeyboardInterrupt("stop")),
    ],
    ids=["scheduler", "allocator", "exit", "device", "interrupt"],
)
def test_a_broken_engine_tells_who_runs_and_who_waits_and_turns_red(
    owner: type,
    name: str,
    error: BaseException,
    engine: BatchedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = GenerationRequest((5, 6), SamplingParams(max_new_tokens=300, min_new_tokens=300))
    monkeypatch.setattr(owner, name, killing(error, getattr(owner, name), num_well=10))
    streams = submit_together(engine, [endless] * 6, monkeypatch)
    for stream in streams:
        with pytest.raises(EngineError, match="the engine has stopped"):
            list(stream)
    status = engine.status()
    assert not status.is_healthy
    assert type(error).__name__ in status.detail
    assert str(error) in status.detail
    with pytest.raises(EngineError, match="the engine has stopped"):
        engine.submit(endless)


def test_what_goes_wrong_while_the_engine_ends_keeps_nobody_waiting(
    engine: BatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = GenerationRequest((5, 6), SamplingParams(max_new_tokens=300, min_new_tokens=300))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(Scheduler, "take_all", killing(AssertionError("freed twice?")))
    plan = killing(RuntimeError("no plan"), Scheduler.plan, num_well=10)
    monkeypatch.setattr(Scheduler, "plan", plan)
    streams = submit_together(engine, [endless] * 6, monkeypatch)
    for stream in streams:
        with pytest.raises(EngineError, match="the engine has stopped"):
            list(stream)


def test_a_pool_that_died_fails_its_rows_and_turns_health_red(
    engine: BatchedEngine,
    causal_base: BaseModel,
    answers: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AdapterPool, "_load", killing(SystemExit("killed")))
    stream = engine.submit(victim(make_lora(causal_base)))
    with pytest.raises(EngineError, match="loads adapters died of SystemExit: killed"):
        list(stream)
    assert "loads adapters died" in engine.status().detail
    assert not engine.status().is_healthy
    with pytest.raises(EngineError, match="loads adapters died"):
        engine.submit(victim(make_lora(causal_base, seed=2)))
    assert [tokens_of(engine.submit(request)) for request in good_requests()] == answers


def test_whole_models_that_died_beside_the_batch_turn_health_red(
    engine: BatchedEngine,
    causal_base: BaseModel,
    answers: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CausalRowForward, "prefill", killing(SystemExit("killed")))
    stream = engine.submit(victim(FullWeights(causal_base.model)))
    with pytest.raises(EngineError, match="died of SystemExit: killed"):
        list(stream)
    assert not engine.status().is_healthy
    assert "SystemExit" in engine.status().detail
    assert [tokens_of(engine.submit(request)) for request in good_requests()] == answers


def test_a_whole_model_that_is_tuned_on_ends_the_rows_that_run_with_it(
    causal_base: BaseModel,
) -> None:
    endless_base = replace(causal_base, max_positions=None)
    engine = BatchedEngine(endless_base, OPTIONS)
    whole = FullWeights(causal_base.model)
    sampling = SamplingParams(max_new_tokens=10**5, min_new_tokens=10**5)
    request = GenerationRequest((5, 6), sampling, whole)
    chunks = iter(engine.submit(request))
    next(chunks)
    for _, parameter in whole.named_parameters():
        parameter.detach().mul_(1.01)
    with pytest.raises(ConflictError, match="weights were changed while a request ran"):
        list(chunks)
    assert len(tokens_of(engine.submit(victim(whole)))) == 20
    assert engine.status().is_healthy
    engine.close()
