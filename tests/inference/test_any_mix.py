"""Whatever shares a batch, each request gets what it would get alone.

In float64, so that no two tokens are as near as rounding; the reference is transformers' own
forward pass and cache, one row at a time. In float32, where our kernels compute, the reference is
the same engine with one request at a time, and the bits must be the same.

The same stories are told to engines in which one part at a time is the plainest thing that keeps
its contract (``fixtures/naive_parts.py``): what is tested is what the contracts promise.

More stories than CI has time for: ``LUTHIER_STORIES=500 pytest tests/inference/test_any_mix.py``,
which are others each time.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fixtures import naive_parts
from fixtures.any_mix import SteppedEngine, Story, token_ids
from fixtures.engine_answers import OneAtATime, wait_until_idle
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.data_model.sampling import SamplingParams
from luthier.inference import batched_engine, sequences
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.deltas import merged_adapter, whole_modules
from luthier.inference.deltas.pool import adapter_pool
from luthier.inference.kernels.library import kernels
from luthier.inference.memory import kv_memory
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners import model_runner
from luthier.inference.runners.seq2seq import encoder_decoder_runner
from luthier.inference.sampling import prompt_lookup
from luthier.inference.scheduling import arrivals, scheduler
from luthier.resources.base_model import BaseModel

MANY = int(os.environ.get("LUTHIER_STORIES", "0"))
#: Of the tiny models in float64.
BYTES_PER_TOKEN = {"causal": 512, "seq2seq": 1024}
#: So little of everything that rows are moved, preempted and put back, prefixes and LoRAs dropped.
TIGHT = EngineOptions(
    max_running=4,
    max_beam_rows=3,
    max_prefix_bytes=128 * BYTES_PER_TOKEN["causal"],
    max_step_tokens=24,
    max_adapter_bytes=250_000,
    merge_after_steps=2,
    turn_tokens=5,
    ageing_steps=3,
)
GUESSING = replace(TIGHT, prompt_lookup_tokens=3)

#: Where the engine looks for each part, and what is put there instead.
NAIVE: dict[str, list[tuple[Any, str, Any]]] = {
    "runner": [
        (batched_engine, "PackedRunner", naive_parts.NaiveRunner),
        (batched_engine, "EncoderDecoderRunner", naive_parts.NaiveRunner),
    ],
    "memory": [
        (model_runner, "KvMemory", naive_parts.NaiveMemory),
        (encoder_decoder_runner, "KvMemory", naive_parts.NaiveMemory),
    ],
    "allocator": [(kv_memory, "RangeAllocator", naive_parts.NaiveAllocator)],
    "queue": [(scheduler, "FairQueue", naive_parts.NaiveQueue)],
    "scheduler": [(batched_engine, "Scheduler", naive_parts.NaiveScheduler)],
    "pool": [(arrivals, "AdapterPool", naive_parts.NaivePool)],
    "deltas": [
        (model_runner, "DeltaLayers", naive_parts.NaiveDeltaLayers),
        (encoder_decoder_runner, "DeltaLayers", naive_parts.NaiveDeltaLayers),
    ],
}


def tiny_base(kind: str, request: pytest.FixtureRequest, dtype: torch.dtype) -> BaseModel:
    folder: Path = request.getfixturevalue(f"tiny_{kind}_dir")
    classes = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
    model = classes[kind].from_pretrained(folder).to(dtype)
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(folder), name="tiny")


@pytest.fixture(scope="module", params=["causal", "seq2seq"])
def exact_base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param, request, torch.float64)


@pytest.fixture(scope="module")
def alone(exact_base: BaseModel) -> Iterator[PlainEngine]:
    engine = PlainEngine(exact_base, EngineOptions(num_threads=1))
    yield engine
    engine.close()


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the engine does, so that a story in which nothing happens is found out."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str, what: Callable[..., str]) -> None:
        method = getattr(owner, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            word = what(result, *arguments)
            counted[word] += bool(word)
            return result

        monkeypatch.setattr(owner, name, counting)

    def cut(slices: Any) -> bool:
        return any(not each.reaches_end for each in slices)

    def guessed(slices: Any) -> bool:
        return any(each.drafted for each in slices)

    kv, pool = kv_memory.KvMemory, adapter_pool.AdapterPool
    count(scheduler.Scheduler, "_preempt", lambda *_: "preempted")
    count(scheduler.Scheduler, "plan", lambda result, _: "prompt in pieces" if cut(result) else "")
    count(kv, "_restore", lambda result, *_: "started from a prefix" if result else "")
    count(kv, "reorder", lambda *_: "beams changed places")
    count(pool, "_tell", lambda *_: "adapter brought")
    count(adapter_pool.DeltaTables, "remove", lambda *_: "adapter dropped")
    count(merged_adapter, "_merged", lambda *_: "merged")
    count(whole_modules.WholeStep, "run", lambda *_: "layers of an adapter's own")
    drafts = prompt_lookup.PromptLookup
    count(drafts, "with_drafts", lambda result, *_: "guessed" if guessed(result) else "")
    return counted


def tell_stories(
    base: BaseModel,
    alone: Engine,
    folder: Path,
    *,
    options: EngineOptions,
    num_stories: int,
    num_tokens: int = 352,  # what the longest request takes, three beams of it
    **named: Any,
) -> Counter[str]:
    """Tell one engine many stories; returns how their requests ended."""
    happened: Counter[str] = Counter()
    max_kv_bytes = num_tokens * BYTES_PER_TOKEN[base.kind] * base.dtype.itemsize // 8
    together = SteppedEngine(base, replace(options, max_kv_bytes=max_kv_bytes))

    # A story takes a second: to shorten one that fails would take minutes.
    @settings(
        max_examples=MANY or num_stories,
        derandomize=not MANY,
        database=None,
        phases=(Phase.generate,),
    )
    @given(seed=st.integers(0, 2**32))
    def tell(seed: int) -> None:
        rng = random.Random(seed)
        story = Story(base, alone=alone, together=together, folder=folder, **named)
        for _ in range(rng.randint(8, 14)):
            story.act(rng.choice(Story.ACTIONS), rng.randrange(2**32))
        story.end()
        happened.update(story.happened)
        with together.gate.opened():
            wait_until_idle(together)
        require_nothing_left(together, options)

    try:
        tell()
    finally:
        together.close()
    return happened


def few(base: BaseModel) -> int:
    return {"causal": 2, "seq2seq": 1}[base.kind]


def require_nothing_left(engine: BatchedEngine, options: EngineOptions) -> None:
    """Every block was freed, and once: to free it twice is refused, which ends the engine."""
    assert engine.status().is_healthy
    memory = engine._runner.memory
    assert memory.allocator.num_free == memory.allocator.num_tokens, "every range was given back"
    prefixes = memory.prefixes
    assert prefixes.num_bytes <= options.max_prefix_bytes
    assert sum(block.nbytes for block in prefixes._blocks.values()) == prefixes.num_bytes
    assert engine.adapter_status().device_bytes <= options.max_adapter_bytes
    assert not engine._arrivals._pins, "every hold on an adapter was let go"


def test_any_mix_equals_each_request_alone_and_every_block_is_freed_once(
    exact_base: BaseModel, alone: PlainEngine, tmp_path: Path, happened: Counter[str]
) -> None:
    happened += tell_stories(
        exact_base,
        alone,
        tmp_path / "stored",
        options=TIGHT,
        num_stories={"causal": 10, "seq2seq": 8}[exact_base.kind],
    )
    wanted = {"complete", "retuned in flight", "beams", "beams changed places", "adapter brought"}
    wanted |= {"layers of an adapter's own"}
    if exact_base.kind == "causal":
        wanted |= {"cancelled", "preempted", "started from a prefix", "adapter dropped"}
        wanted |= {"prompt in pieces", "classified"}
    assert wanted - {word for word, count in happened.items() if count} == set()


def test_guessed_tokens_change_nothing(
    exact_base: BaseModel, alone: PlainEngine, tmp_path: Path, happened: Counter[str]
) -> None:
    if exact_base.kind == "seq2seq":
        pytest.skip("an answer is not guessed by what an encoder read")
    folder = tmp_path / "stored"
    tell_stories(
        exact_base, alone, folder, options=GUESSING, num_stories=2, num_tokens=800, longest=40
    )
    # So long that it says two tokens again that it said before.
    request = GenerationRequest((7, 8, 9) * 5, SamplingParams(max_new_tokens=250))
    engine = BatchedEngine(exact_base, GUESSING)
    assert token_ids(list(engine.submit(request))) == token_ids(list(alone.submit(request)))
    engine.close()
    assert happened["guessed"]


@pytest.mark.parametrize("part", NAIVE)
def test_a_naive_part_keeps_the_same_contract(
    part: str,
    exact_base: BaseModel,
    alone: PlainEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, name, naive in NAIVE[part]:
        monkeypatch.setattr(module, name, naive)
    tell_stories(exact_base, alone, tmp_path / "stored", options=TIGHT, num_stories=few(exact_base))


def test_a_naive_sampler_keeps_the_same_contract(
    exact_base: BaseModel, alone: PlainEngine, tmp_path: Path
) -> None:
    def with_naive_sampler() -> contextlib.AbstractContextManager[Any]:
        return mock.patch.object(sequences, "Sampler", naive_parts.NaiveSampler)

    tell_stories(
        exact_base,
        alone,
        tmp_path / "stored",
        options=TIGHT,
        num_stories=few(exact_base),
        submitting=with_naive_sampler,
    )


@pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_bits_of_an_answer_do_not_depend_on_the_mix(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Neither on pieces of prompts, preemption, kept prefixes, guessed tokens; only on merging."""
    base = tiny_base(kind, request, torch.float32)
    roomy = EngineOptions(max_running=4, max_beam_rows=3, max_prefix_bytes=0, merge_after_steps=0)
    alone = OneAtATime(base, roomy)
    try:
        for options in (TIGHT, GUESSING):
            happened = tell_stories(
                base,
                alone,
                tmp_path / "stored",
                options=replace(options, merge_after_steps=0),
                num_stories=6,
                tolerance=0.0,
            )
            assert happened["complete"] > 20
    finally:
        alone.close()
