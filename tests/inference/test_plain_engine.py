"""What only the plain engine does; what it shares with others is in test_engine_contract.py."""

from __future__ import annotations

from dataclasses import replace

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
    next(iter(streams[0]))
    status = engine.status()
    assert status.num_running <= 2
    assert status.num_waiting >= 3
    engine.close()
    for stream in streams[1:]:
        assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
