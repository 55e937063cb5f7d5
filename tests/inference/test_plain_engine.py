"""What only the plain engine does; what it shares with others is in test_engine_contract.py."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import FinishReason, GenerationRequest
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel


def test_it_runs_as_many_rows_as_it_has_threads_and_never_more_than_allowed(
    causal_base: BaseModel,
) -> None:
    endless = SamplingParams(max_new_tokens=10**5, min_new_tokens=10**5)
    request = GenerationRequest((5, 6), endless)
    engine = PlainEngine(
        replace(causal_base, max_positions=None), EngineOptions(max_running=2, num_threads=3)
    )
    streams = [engine.submit(request) for _ in range(5)]
    chunks = iter(streams[0])  # held: who drops it cancels the row
    next(chunks)
    status = engine.status()
    assert status.num_running <= 2
    assert status.num_waiting >= 3
    engine.close()
    for stream in streams[1:]:
        assert list(stream)[-1].finish_reason is FinishReason.CANCELLED


def test_tenants_and_their_adapters_take_turns_whoever_came_first(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    may_go_on = threading.Event()
    run = PlainEngine._run

    def noted(engine: PlainEngine, row: Any) -> None:
        order.append(row.tenant)
        assert may_go_on.wait(60)
        run(engine, row)

    monkeypatch.setattr(PlainEngine, "_run", noted)
    engine = PlainEngine(causal_base, EngineOptions(num_threads=1))
    ask = SamplingParams(max_new_tokens=2)
    streams = [
        engine.submit(GenerationRequest((7, 8), ask, tenant=tenant))
        for tenant in ("flood", "flood", "flood", "flood", "other", "third", "other")
    ]
    streams[3].cancel()
    may_go_on.set()
    finals = [list(stream)[-1].finish_reason for stream in streams]
    engine.close()
    assert finals == [FinishReason.MAX_TOKENS] * 3 + [FinishReason.CANCELLED] + (
        [FinishReason.MAX_TOKENS] * 3
    )
    assert order.index("third") < 4, "each tenant had a turn before one had its third"
    assert order[-1] != "third"
    assert sorted(order) == ["flood"] * 3 + ["other"] * 2 + ["third"]
