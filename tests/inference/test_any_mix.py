"""Whatever shares a batch, each request gets what it would get alone.

In float64, so that no two tokens are as near as rounding; the reference is transformers' own
forward pass and cache, one row at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.lora_models import disturb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.inference.base import FinishReason, GenerationChunk, GenerationRequest, TokenStream
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

MakePrompt = Callable[..., Adapter]
BYTES_PER_TOKEN = 512  # of the tiny model in float64
#: So little of everything that rows are moved, preempted and put back, prefixes and LoRAs dropped.
TIGHT = EngineOptions(
    max_running=4,
    max_kv_bytes=192 * BYTES_PER_TOKEN,
    max_prefix_bytes=128 * BYTES_PER_TOKEN,
    max_step_tokens=24,
    max_adapter_bytes=60_000,
    merge_after_steps=2,
    turn_tokens=5,
    ageing_steps=3,
)
#: Model ids and the sorts of what they serve.
SORTS = {"base": "", "short": "soft", "long": "soft", "small": "lora", "large": "lora"}


@pytest.fixture(scope="module")
def exact_base(tiny_causal_dir: Path) -> BaseModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir).double()
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(tiny_causal_dir), name="tiny")


@pytest.fixture(scope="module")
def alone(exact_base: BaseModel) -> Iterator[PlainEngine]:
    engine = PlainEngine(exact_base, EngineOptions(num_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def together(exact_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(exact_base, TIGHT)
    yield engine
    engine.close()


@dataclass
class Asked:
    """A request under way, and what it gets alone."""

    model_id: str
    stream: TokenStream
    expected: list[GenerationChunk]
    got: list[GenerationChunk] = field(default_factory=list)
    is_cancelled: bool = False
    chunks: Iterator[GenerationChunk] = field(init=False)

    def __post_init__(self) -> None:
        self.chunks = iter(self.stream)

    def read(self, count: int) -> None:
        for _, chunk in zip(range(count), self.chunks, strict=False):
            self.got.append(chunk)

    def finish_and_compare(self) -> None:
        self.got.extend(self.chunks)
        last, expected = self.got[-1], self.expected
        got_ids, expected_ids = token_ids(self.got), token_ids(expected)
        if self.is_cancelled and last.finish_reason is FinishReason.CANCELLED:
            assert got_ids == expected_ids[: len(got_ids)]
            return
        assert got_ids == expected_ids
        assert "".join(c.text for c in self.got) == "".join(c.text for c in expected)
        assert last.finish_reason is expected[-1].finish_reason
        assert last.seed == expected[-1].seed
        for ours, theirs in zip(reports(self.got), reports(expected), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-9)


def token_ids(chunks: list[GenerationChunk]) -> list[int]:
    return [token.token_id for chunk in chunks for token in chunk.tokens]


def reports(chunks: list[GenerationChunk]) -> list[tuple[int, float, int]]:
    tokens = [token for chunk in chunks for token in (*chunk.input_tokens, *chunk.tokens)]
    return [(token.token_id, token.logprob or 0.0, token.rank or 0) for token in tokens]


class Story:
    """Requests, cancels, replacements and retunings, drawn one after the other."""

    def __init__(
        self,
        rng: random.Random,
        base: BaseModel,
        make_prompt: MakePrompt,
        engines: tuple[PlainEngine, BatchedEngine],
    ) -> None:
        self.rng = rng
        self._base = base
        self._make_prompt = make_prompt
        self._alone, self._together = engines
        self._served = {model_id: self._new_adapter(model_id) for model_id in SORTS}
        self._beginnings = [self._tokens(40) for _ in range(2)]
        self.asked: list[Asked] = []

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(5, 400) for _ in range(count))

    def _new_adapter(self, model_id: str) -> Adapter | None:
        seed = self.rng.randrange(10**6)
        if SORTS[model_id] == "soft":
            count = 21 if model_id == "long" else 5
            adapter = self._make_prompt(self._base, seed=seed, num_virtual_tokens=count)
            return adapter.to(device=self._base.device, dtype=torch.float64)
        if SORTS[model_id] == "lora":
            config = LoraConfig(rank=2)
            if model_id == "large":
                config = LoraConfig(rank=8, target_modules=("q_proj", "o_proj", "up_proj"))
            lora = create_lora(self._base.model, config, seed=seed)
            disturb(lora, seed=seed, by=0.2)
            return lora
        return None

    def ask_several(self) -> None:
        """A burst of requests, whose answers are known before the first is sent."""
        drawn = [self._draw_request() for _ in range(self.rng.randint(1, 7))]
        expected = [list(self._alone.submit(request)) for _, request in drawn]
        for (model_id, request), chunks in zip(drawn, expected, strict=True):
            self.asked.append(Asked(model_id, self._together.submit(request), chunks))

    def _draw_request(self) -> tuple[str, GenerationRequest]:
        rng = self.rng
        model_id = rng.choice(list(SORTS))
        sampling: dict[str, Any] = {"max_new_tokens": rng.randint(1, 24)}
        if rng.random() < 0.4:
            sampling |= {"decoding_method": SAMPLING, "seed": rng.randrange(1000), "top_k": 20}
        if rng.random() < 0.3:
            sampling |= {"repetition_penalty": 1.2, "temperature": 0.7}
        if rng.random() < 0.3:
            sampling |= {"input_tokens": True, "token_logprobs": True, "token_ranks": True}
        beginning = rng.choice(self._beginnings)[: rng.choice([0, 16, 40])]
        token_ids = (*beginning, *self._tokens(rng.randint(1, 30)))
        if rng.random() < 0.3 and len(token_ids) < 50 and "seed" not in sampling:
            sampling |= {"num_beams": 2}  # two of the longest just fit
        request = GenerationRequest(
            token_ids,
            SamplingParams(**sampling),
            self._served[model_id],
            tenant=rng.choice(["", "a", "b"]),
            priority=rng.randint(-1, 1),
        )
        return model_id, request

    def read_some(self) -> None:
        if self.asked:
            self.rng.choice(self.asked).read(self.rng.randint(1, 3))

    def cancel_one(self) -> None:
        if self.asked:
            asked = self.rng.choice(self.asked)
            asked.stream.cancel()
            asked.is_cancelled = True

    def replace_one(self) -> None:
        """Another adapter under the same id; requests of the old one go on with it."""
        model_id = self.rng.choice(list(SORTS))
        self._served[model_id] = self._new_adapter(model_id)

    def retune_one(self) -> None:
        """The same object with other tensors, while nobody uses it."""
        model_id = self.rng.choice(list(SORTS))
        adapter = self._served[model_id]
        for asked in self.asked:
            if asked.model_id == model_id:
                asked.finish_and_compare()
        self.asked = [asked for asked in self.asked if asked.model_id != model_id]
        if adapter is not None:
            with torch.no_grad():
                for _, parameter in adapter.named_parameters():
                    parameter.mul_(-1.5)


def wait_until_idle(engine: BatchedEngine) -> None:
    deadline = time.monotonic() + 60
    while engine.status().num_running or engine.status().num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@settings(
    max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6))
def test_any_mix_equals_each_request_alone_and_every_block_is_freed_once(
    seed: int,
    exact_base: BaseModel,
    make_prompt: MakePrompt,
    alone: PlainEngine,
    together: BatchedEngine,
) -> None:
    story = Story(random.Random(seed), exact_base, make_prompt, (alone, together))
    actions = [story.ask_several] * 3 + [story.read_some]
    actions += [story.cancel_one, story.replace_one, story.retune_one]
    for _ in range(12):
        story.rng.choice(actions)()
    for asked in story.asked:
        asked.finish_and_compare()
    wait_until_idle(together)
    memory = together._runner.memory
    assert memory.allocator.num_free == memory.allocator.num_tokens, "every range was given back"
    assert memory.prefixes.num_bytes <= TIGHT.max_prefix_bytes
    assert sum(memory.prefixes.get(key).nbytes for key in memory.prefixes._blocks) == (
        memory.prefixes.num_bytes
    )
    assert together.status().is_healthy
    assert together._whole_models is None, "all of them ran in the batch"
