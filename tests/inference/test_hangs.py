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
from luthier.inference.base import Engine, GenerationRequest, TokenStream
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.row_forward import CausalRowForward
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
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self._watch = engine._watch
        self._watch._clock = lambda: self.now
        compute = getattr(owner, name)

        def slow(*arguments: Any, **named: Any) -> Any:
            self.has_begun.set()
            assert self.may_end.wait(60)
            return compute(*arguments, **named)

        patch.setattr(owner, name, slow)

    def begin(self) -> list[TokenStream]:
        """Requests of which the first is in a step that does not go on."""
        streams = [self.engine.submit(request) for request in REQUESTS]
        assert self.has_begun.wait(60)
        return streams

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
    stuck.lasts(301)
    for stream in streams:
        with pytest.raises(EngineError, match=r"does not answer: step \d+ with") as caught:
            list(stream)
        assert caught.value.code == "engine_failed"
    assert "has lasted 301 s, at most 300 s are allowed" in InfoService().problem()
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
    stuck.lasts(301)
    stuck.engine.close()
    assert stuck.engine.status().detail == "closed"
    for stream in streams:
        with pytest.raises(EngineError):
            list(stream)
