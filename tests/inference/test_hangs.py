"""A step that does not end is told to everybody; one that ends after all leaves no trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineDownError, EngineError
from luthier.inference import plain_engine
from luthier.inference.base import Engine, FinishReason, GenerationRequest, TokenStream
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.row_forward import CausalRowForward
from luthier.inference.scheduling.scheduler import Scheduler
from luthier.resources.base_model import BaseModel
from luthier.runtime.services import info
from luthier.runtime.services.info import InfoService

REQUESTS = [
    GenerationRequest((7, 8, 9), SamplingParams(max_new_tokens=6)),
    GenerationRequest((20, 21), SamplingParams(max_new_tokens=6)),
    GenerationRequest((30, 31), SamplingParams(max_new_tokens=6, num_beams=2)),
]
#: What a step of each engine spends its time in, and how many requests share it.
STEPS: dict[str, tuple[type[Any], type, str, int]] = {
    "batched": (BatchedEngine, PackedRunner, "run", 3),
    "plain": (PlainEngine, CausalRowForward, "step", 1),
}


class Stuck:
    """Holds an engine's thread in the middle of a step, and its watch's clock."""

    def __init__(self, engine: Any, owner: type, name: str, patch: pytest.MonkeyPatch) -> None:
        self.engine: Engine = engine
        self.now = 1000.0
        self.begun, self.may_end = threading.Semaphore(0), threading.Event()
        self._watch = engine._watch
        self._watch._clock = lambda: self.now
        compute = getattr(owner, name)

        def slow(*arguments: Any, **named: Any) -> Any:
            self.begun.release()
            assert self.may_end.wait(60)
            return compute(*arguments, **named)

        patch.setattr(owner, name, slow)

    def begin(self) -> list[TokenStream]:
        """Requests of which the first is in a step that does not go on."""
        streams = [self.engine.submit(request) for request in REQUESTS]
        assert self.begun.acquire(timeout=60)
        return streams

    def hangs(self) -> None:
        """Let each step that the engine can begin last for too long."""
        self.lasts(301)
        if isinstance(self.engine, PlainEngine):  # which has a second thread for the next row
            assert self.begun.acquire(timeout=60)
            assert self.engine.status().is_healthy
            self.lasts(301)

    def lasts(self, seconds: float) -> None:
        """Let time pass, and the watch look."""
        self.now += seconds
        self._watch.look()


@pytest.fixture(params=STEPS)
def stuck(
    request: pytest.FixtureRequest, causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    kind, owner, name, num_running = STEPS[request.param]
    options = EngineOptions(max_step_seconds=300, num_threads=1, max_running=num_running)
    engine = kind(replace(causal_base), options)
    made = Stuck(engine, owner, name, monkeypatch)
    yield made
    made.may_end.set()
    engine.close()


@pytest.fixture(scope="module")
def answers(causal_base: BaseModel) -> Iterator[list[list[int]]]:
    engine = PlainEngine(causal_base, EngineOptions(num_threads=1))
    yield [tokens_of(engine.submit(request)) for request in REQUESTS]
    engine.close()


def tokens_of(stream: TokenStream) -> list[int]:
    return [token.token_id for chunk in stream for token in chunk.tokens]


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_step_that_hangs_is_told_to_all_and_one_that_ends_is_forgotten(
    stuck: Stuck, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stuck.engine
    monkeypatch.setattr(info, "engines", lambda: [engine])
    streams = stuck.begin()
    stuck.hangs()
    for stream in streams:
        with pytest.raises(EngineError, match=r"does not answer: step \d+ with") as caught:
            list(stream)
        assert caught.value.code == "engine_failed"
    assert "s, at most 300 s are allowed" in InfoService().problem()
    assert engine.status().detail == InfoService().problem()
    with pytest.raises(EngineDownError, match=r"does not answer: step \d+"):
        engine.submit(REQUESTS[0])

    stuck.may_end.set()
    wait_for(lambda: engine.status().is_healthy)
    assert [tokens_of(engine.submit(request)) for request in REQUESTS] == answers
    wait_for(lambda: engine.status().num_running == engine.status().num_waiting == 0)
    assert InfoService().problem() == ""
    if isinstance(engine, BatchedEngine):
        allocator = engine._runner.memory.allocator
        wait_for(lambda: allocator.num_free == allocator.num_tokens)


def test_a_long_step_that_ends_in_time_is_no_matter(stuck: Stuck, answers: list[list[int]]) -> None:
    streams = stuck.begin()
    stuck.lasts(299)
    assert stuck.engine.status().is_healthy
    late = stuck.engine.submit(REQUESTS[0])
    stuck.may_end.set()
    assert [tokens_of(stream) for stream in (*streams, late)] == [*answers, answers[0]]


def test_an_engine_that_hangs_can_be_closed(stuck: Stuck) -> None:
    streams = stuck.begin()
    stuck.hangs()
    stuck.engine.close()
    assert stuck.engine.status().detail == "closed"
    for stream in streams:
        with pytest.raises(EngineError):
            list(stream)


def test_who_leaves_before_a_step_hangs_is_told_at_once(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchedEngine(replace(causal_base), EngineOptions(max_step_seconds=300))
    plan, may_plan = Scheduler.plan, threading.Event()
    monkeypatch.setattr(Scheduler, "plan", lambda self: plan(self) if may_plan.is_set() else [])
    stuck = Stuck(engine, PackedRunner, "run", monkeypatch)
    left, late = engine.submit(REQUESTS[0]), engine.submit(REQUESTS[1])
    end_early = BatchedEngine._end_early

    def leaving(self: BatchedEngine) -> Any:
        left.cancel()
        may_plan.set()
        return end_early(self)

    monkeypatch.setattr(BatchedEngine, "_end_early", leaving)
    assert stuck.begun.acquire(timeout=60)
    assert left._channel.is_ended, "the step has begun, and does not end"  # type: ignore[attr-defined]
    assert [chunk.finish_reason for chunk in left] == [FinishReason.CANCELLED]
    stuck.may_end.set()
    assert list(late)[-1].is_last
    engine.close()


@pytest.fixture
def victims(causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """A plain engine of one thread that hangs in the rows of one prompt."""
    engine = PlainEngine(replace(causal_base), EngineOptions(max_step_seconds=300, num_threads=1))
    step = CausalRowForward.step
    made = Stuck(engine, CausalRowForward, "step", monkeypatch)
    slow, prefill = CausalRowForward.step, CausalRowForward.prefill
    is_victims: set[Any] = set()

    def marked(self: Any, prompt: Any, **named: Any) -> Any:
        if prompt.token_ids == VICTIM.input_ids:
            is_victims.add(self)
        return prefill(self, prompt, **named)

    def some(self: Any, token_id: int) -> Any:
        return (slow if self in is_victims else step)(self, token_id)

    monkeypatch.setattr(CausalRowForward, "prefill", marked)
    monkeypatch.setattr(CausalRowForward, "step", some)
    yield made
    made.may_end.set()
    engine.close()


VICTIM = GenerationRequest((99, 98, 97), SamplingParams(max_new_tokens=6))


def test_a_plain_row_that_hangs_ends_alone_and_its_thread_is_replaced(
    victims: Stuck, answers: list[list[int]]
) -> None:
    engine = victims.engine
    assert isinstance(engine, PlainEngine)
    lost = engine.submit(VICTIM)
    assert victims.begun.acquire(timeout=60)
    waiting = [engine.submit(request) for request in REQUESTS]
    victims.lasts(301)
    with pytest.raises(
        EngineError, match=r"does not answer: step 2 with 1 row\(s\) has lasted 301"
    ):
        list(lost)
    assert [tokens_of(stream) for stream in waiting] == answers
    assert engine.status().is_healthy
    assert [tokens_of(engine.submit(request)) for request in REQUESTS] == answers
    assert len(engine._threads) == 2
    victims.may_end.set()
    wait_for(lambda: len(engine._threads) == 1)
    assert [tokens_of(engine.submit(request)) for request in REQUESTS] == answers


def test_threads_that_hang_are_bounded_and_the_engine_refuses_while_none_is_left(
    victims: Stuck, answers: list[list[int]]
) -> None:
    engine = victims.engine
    assert isinstance(engine, PlainEngine)
    for _ in range(2):
        assert engine.status().is_healthy
        lost = engine.submit(VICTIM)
        assert victims.begun.acquire(timeout=60)
        waiting = engine.submit(REQUESTS[0])
        victims.lasts(301)
        with pytest.raises(EngineError):
            list(lost)
    with pytest.raises(EngineError, match="does not answer"):
        list(waiting)
    assert not engine.status().is_healthy
    assert len(engine._threads) == 2
    with pytest.raises(EngineDownError):
        engine.submit(REQUESTS[0])
    victims.may_end.set()
    wait_for(lambda: engine.status().is_healthy)
    assert tokens_of(engine.submit(REQUESTS[0])) == answers[0]
    wait_for(lambda: len(engine._threads) == 1)


def test_a_thread_is_not_replaced_where_rows_must_not_run_side_by_side(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_engine, "positions_change_with_length", lambda model: True)
    engine = PlainEngine(replace(causal_base), EngineOptions(max_step_seconds=300))
    stuck = Stuck(engine, CausalRowForward, "step", monkeypatch)
    streams = stuck.begin()
    stuck.lasts(301)
    for stream in streams:
        with pytest.raises(EngineError, match="does not answer"):
            list(stream)
    with pytest.raises(EngineDownError):
        engine.submit(REQUESTS[0])
    assert len(engine._threads) == 1
    stuck.may_end.set()
    engine.close()
