from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig, MambaForCausalLM

from luthier.data_model.sampling import SamplingParams
from luthier.inference import registry
from luthier.inference.base import Engine, FinishReason, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.registry import (
    close_all,
    engine_for,
    engines,
    has_engine,
    make_engine,
)
from luthier.resources.base_model import BaseModel

REQUEST = GenerationRequest((5, 6, 7), SamplingParams(max_new_tokens=5))


@pytest.fixture(autouse=True)
def _closed_afterwards() -> Iterator[None]:
    yield
    close_all()


def test_a_base_model_has_one_engine_however_many_ask(causal_base: BaseModel) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(engine_for(causal_base))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(engine) for engine in found}) == 1


def test_a_model_is_served_in_batches_if_it_can_be(
    causal_base: BaseModel, seq2seq_base: BaseModel
) -> None:
    assert isinstance(engine_for(causal_base), BatchedEngine)
    assert isinstance(engine_for(seq2seq_base), BatchedEngine)
    odd = MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1))
    alone = BaseModel.from_memory(odd, causal_base.tokenizer, name="tiny-mamba")
    assert isinstance(engine_for(alone), PlainEngine)


def test_two_copies_have_two_engines(causal_base: BaseModel) -> None:
    other = replace(causal_base)
    assert engine_for(causal_base) is not engine_for(other)


def test_the_options_of_the_first_call_count(causal_base: BaseModel) -> None:
    base = replace(causal_base)
    engine = engine_for(base, options=EngineOptions(num_threads=1))
    assert engine_for(base, options=EngineOptions(num_threads=3)) is engine


def test_the_last_holder_of_a_base_model_takes_its_engine_along(causal_base: BaseModel) -> None:
    base = replace(causal_base)
    engine = engine_for(base)
    assert list(engine.submit(REQUEST))[-1].is_last
    gone = weakref.ref(base)
    del base
    gc.collect()
    assert gone() is None
    deadline = time.monotonic() + 60
    while engine.status().is_healthy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.status().detail == "closed"
    assert engine not in engines()


def test_a_process_that_drops_its_models_and_exits_does_not_crash(tiny_causal_dir: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from luthier.data_model.sampling import SamplingParams\n"
        "from luthier.inference.base import GenerationRequest\n"
        "from luthier.inference.registry import engine_for\n"
        "from luthier.resources.model_loading import load_base_model\n"
        "from luthier.resources.names import BaseModelLocation, BaseModelSources\n"
        "def use():\n"
        "    location = BaseModelLocation('tiny', Path(sys.argv[1]), 'path')\n"
        "    base = load_base_model(location, sources=BaseModelSources())\n"
        "    request = GenerationRequest((5, 6), SamplingParams(max_new_tokens=3))\n"
        "    engine = engine_for(base)\n"
        "    return base, list(engine.submit(request)), engine.submit(request)\n"
        "for _ in range(3):\n"
        "    use()\n"
        "kept = use()\n"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tiny_causal_dir)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]


def test_a_stream_keeps_the_base_model_until_it_is_read(causal_base: BaseModel) -> None:
    base = replace(causal_base)
    stream = engine_for(base).submit(REQUEST)
    del base
    gc.collect()
    assert list(stream)[-1].finish_reason is FinishReason.MAX_TOKENS


def test_closing_all_ends_every_stream_and_a_new_engine_starts(causal_base: BaseModel) -> None:
    base = replace(causal_base, max_positions=None)
    engine = engine_for(base)
    endless = SamplingParams(max_new_tokens=10**5, min_new_tokens=10**5)
    stream = engine.submit(GenerationRequest((5, 6), endless))
    close_all()
    assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
    assert engine_for(base) is not engine


def test_an_engine_runs_in_a_process_where_the_options_say_so(causal_base: BaseModel) -> None:
    base = replace(causal_base)
    expected = list(engine_for(causal_base).submit(REQUEST))
    engine = engine_for(base, options=EngineOptions(process=ProcessOptions()))
    assert isinstance(engine, ProcessEngine)
    assert list(engine.submit(REQUEST)) == expected
    close_all()
    assert engine.status().detail == "closed"
    assert engine.pid is None


def test_while_an_engine_is_made_nobody_else_waits(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, slow = replace(causal_base), replace(causal_base)
    engine = engine_for(known)
    has_begun, may_end = threading.Event(), threading.Event()

    def make(*arguments: Any) -> Engine:
        has_begun.set()
        assert may_end.wait(60)
        return make_engine(*arguments)

    monkeypatch.setattr(registry, "make_engine", make)
    with ThreadPoolExecutor(3) as pool:
        try:
            made = [pool.submit(engine_for, slow) for _ in range(2)]
            assert has_begun.wait(60)
            looks = pool.submit(
                lambda: (engine_for(known), engines(), has_engine(known), has_engine(slow))
            )
            assert looks.result(60) == (engine, [engine], True, False)
        finally:
            may_end.set()
        assert made[0].result(60) is made[1].result(60)
    assert has_engine(slow)
