"""What an engine in a process promises beyond ``test_engine_contract.py``."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.lora_models import disturb
from fixtures.process_engines import close_process_engines, process_engine
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineDownError, EngineError, NotSupportedError, ReplacedError
from luthier.inference.base import (
    ClassificationRequest,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Request,
)
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.channels import Channel
from luthier.inference.engine_process import process_engine as process_engine_file
from luthier.inference.engine_process.messages import encode_chunk, encode_error
from luthier.inference.engine_process.process_engine import ProcessEngine, _Row
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.resources.base_model import BaseModel

ENDLESS = SamplingParams(max_new_tokens=10**5, min_new_tokens=10**5)
SHORT = SamplingParams(max_new_tokens=6, token_logprobs=True)


@pytest.fixture(scope="module")
def engine(causal_base: BaseModel) -> Iterator[ProcessEngine]:
    """One process for the tests that leave it alive; it forgets each adapter for the next one."""
    made = ProcessEngine(causal_base, EngineOptions(process=ProcessOptions(max_adapter_bytes=1)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def thread_engine(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    made = BatchedEngine(causal_base)
    yield made
    made.close()


def lora(base_model: BaseModel, *, seed: int, **config: Any) -> Adapter:
    adapter = create_lora(base_model.model, LoraConfig(rank=4, **config), seed=seed)
    disturb(adapter, seed=seed)
    return adapter


def same(left: list[GenerationChunk], right: list[GenerationChunk]) -> bool:
    """Equal but for the last digits of log-probabilities and scores."""
    return len(left) == len(right) and all(
        [token.token_id for token in one.tokens] == [token.token_id for token in other.tokens]
        and [token.logprob for token in one.tokens]
        == pytest.approx([token.logprob for token in other.tokens], abs=1e-4)
        and one.scores == pytest.approx(other.scores, abs=1e-4)
        and replace(one, tokens=(), scores=()) == replace(other, tokens=(), scores=())
        for one, other in zip(left, right, strict=True)
    )


def wait_until(is_true: Callable[[], bool], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def adapters(base_model: BaseModel, make_prompt: Any, folder: Path) -> list[Adapter]:
    """Each sort: virtual tokens, a LoRA in memory, one in a folder, one with a whole module."""
    saved = lora(base_model, seed=2)
    save_adapter(saved, folder, base_model_name="tiny")
    return [
        make_prompt(base_model, seed=1),
        lora(base_model, seed=1, use_dora=True),
        StoredAdapter(load_adapter(folder, base_model=base_model), folder, base_model=base_model),
        lora(base_model, seed=3, modules_to_save=("lm_head",)),
    ]


def test_adapters_of_every_sort_give_what_they_give_in_a_thread(
    engine: ProcessEngine,
    thread_engine: BatchedEngine,
    causal_base: BaseModel,
    make_prompt: Any,
    tmp_path: Path,
) -> None:
    head = torch.randn(3, causal_base.hidden_size)
    requests: list[Request] = []
    for adapter in [None, *adapters(causal_base, make_prompt, tmp_path / "adapter")]:
        requests += [
            GenerationRequest((5, 6, 7), SHORT, adapter),
            ClassificationRequest((5, 6, 7), head, adapter),
        ]
    streams = [engine.submit(request) for request in requests * 2]
    answers = [list(stream) for stream in streams]
    expected = [list(thread_engine.submit(request)) for request in requests]
    wrong = [n for n, answer in enumerate(answers) if not same(answer, expected[n % len(expected)])]
    assert wrong == []
    assert len({str(answer) for answer in expected}) == len(expected)


def test_it_tells_which_deltas_are_kept(
    engine: ProcessEngine, causal_base: BaseModel, make_prompt: Any
) -> None:
    assert engine.keeps_deltas(lora(causal_base, seed=1))
    assert engine.keeps_deltas(lora(causal_base, seed=2))
    assert engine.keeps_deltas(lora(causal_base, seed=1, modules_to_save=("lm_head",)))
    assert engine.keeps_deltas(lora(causal_base, seed=1, trainable_token_indices=(5, 6)))
    assert not engine.keeps_deltas(FullWeights(causal_base.model))
    assert not engine.keeps_deltas(make_prompt(causal_base, seed=1))
    assert not engine.is_rounded


def test_what_it_remembers_of_kept_deltas_is_bounded(
    engine: ProcessEngine, causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_engine_file, "_MAX_KEPT_LAYERS", 3)
    engine._kept_layers.clear()
    paths = [
        "0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj", "0.mlp.up_proj",
        "0.mlp.down_proj",
    ]  # fmt: skip
    for path in [*paths, *paths]:
        assert engine.keeps_deltas(lora(causal_base, seed=1, target_modules=(path,)))
    assert len(engine._kept_layers) == 3


def test_an_adapter_that_changed_in_place_is_another_one(
    engine: ProcessEngine, thread_engine: BatchedEngine, causal_base: BaseModel, make_prompt: Any
) -> None:
    adapter = make_prompt(causal_base, seed=7)
    request = GenerationRequest((5, 6), SHORT, adapter)
    before = list(engine.submit(request))
    with torch.no_grad():
        adapter.prompt_embeddings.mul_(-1)
    after = list(engine.submit(request))
    assert same(after, list(thread_engine.submit(request)))
    assert not same(after, before)


def test_an_adapter_whose_folder_was_replaced_fails_with_that_reason(
    engine: ProcessEngine, causal_base: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    save_adapter(lora(causal_base, seed=11), folder, base_model_name="tiny")
    loaded = load_adapter(folder, base_model=causal_base)
    stored = StoredAdapter(loaded, folder, base_model=causal_base)
    save_adapter(lora(causal_base, seed=12), folder, base_model_name="tiny", overwrite=True)
    with pytest.raises(ReplacedError, match="replaced by another"):
        list(engine.submit(GenerationRequest((5, 6), SHORT, stored)))


def test_a_whole_model_is_no_adapter_here(engine: ProcessEngine, causal_base: BaseModel) -> None:
    request = GenerationRequest((5, 6), SHORT, FullWeights(causal_base.model))
    with pytest.raises(NotSupportedError, match="whole model"):
        list(engine.submit(request))
    assert list(engine.submit(replace(request, adapter=None)))[-1].is_last


@pytest.mark.parametrize(
    ("seed", "problem"), [(21, OSError("no space left")), (22, RuntimeError("no memory left"))]
)
def test_an_adapter_that_could_not_be_handed_over_is_tried_again_for_the_next_request(
    engine: ProcessEngine,
    causal_base: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    problem: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise problem

    request = GenerationRequest((5, 6), SHORT, lora(causal_base, seed=seed))
    with monkeypatch.context() as patched:
        patched.setattr(process_engine_file, "describe_adapter", fail)
        with pytest.raises(EngineError, match=f"could not be handed over: {problem}"):
            list(engine.submit(request))
    assert list(engine.submit(request))[-1].is_last


def test_a_message_that_cannot_be_understood_lets_nobody_be_forgotten(
    engine: ProcessEngine,
) -> None:
    """Who is still known is told when the process is ended for that message."""
    last = GenerationChunk(text="", finish_reason=FinishReason.EOS_TOKEN)
    row = _Row(Channel(), tenant="", num_input=1)
    engine._rows[-1] = row
    unknown = [-2, *encode_error(EngineError("of nobody"))]
    with pytest.raises(EngineError, match="request -2, which is not running"):
        engine._hear("step", [[engine._num_submitted, 0], [encode_chunk(-1, last)], [unknown]])
    assert engine._rows.pop(-1) is row
    engine._questions[-1] = Future()
    with pytest.raises(TypeError):
        engine._hear("answer", [-1])
    assert engine._questions.pop(-1).done() is False


def test_a_question_that_the_process_cannot_answer_fails_with_the_reason(
    engine: ProcessEngine,
) -> None:
    question = engine._questions[-1] = Future[Any]()
    engine._hear("answer", [-1, False, *encode_error(EngineError("no such layer"))])
    with pytest.raises(EngineError, match="no such layer"):
        question.result(0)


def test_signals_that_ask_for_an_end_are_the_owners_business(engine: ProcessEngine) -> None:
    chunks = iter(engine.submit(GenerationRequest((5, 6), replace(SHORT, max_new_tokens=300))))
    next(chunks)
    assert engine.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.pid, number)
    assert list(chunks)[-1].finish_reason in (FinishReason.MAX_TOKENS, FinishReason.EOS_TOKEN)
    assert os.getpgid(engine.pid) == engine.pid != os.getpgid(0), "Ctrl-C does not reach it"


async def test_a_process_that_is_killed_fails_its_rows_at_once_and_another_takes_over(
    causal_base: BaseModel, make_prompt: Any, tmp_path: Path
) -> None:
    """Running and waiting ones, read in a thread and on a loop; adapters are sent again."""
    engine = ProcessEngine(
        replace(causal_base, max_positions=None),
        EngineOptions(max_running=2, process=ProcessOptions(restart_seconds=0.0)),
    )
    try:
        requests = [
            GenerationRequest((5, 6), SHORT, adapter)
            for adapter in [None, *adapters(causal_base, make_prompt, tmp_path / "adapter")]
        ]
        before = [list(engine.submit(request)) for request in requests]
        streams = [engine.submit(GenerationRequest((5, 6), ENDLESS)) for _ in range(6)]
        reading = [asyncio.create_task(_read(stream)) for stream in streams[:4]]
        in_a_thread = asyncio.create_task(asyncio.to_thread(list, streams[4]))
        await asyncio.to_thread(wait_until, lambda: engine.status().num_running == 2)
        killed = engine.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        ended = await asyncio.gather(*reading, in_a_thread, return_exceptions=True)
        with pytest.raises(EngineError, match="killed by signal 9"):
            list(streams[5])
        assert {type(error) for error in ended} == {EngineError}
        assert all("killed by signal 9 (SIGKILL)" in str(error) for error in ended)
        status = engine.status()
        assert (status.num_running, status.num_waiting) == (0, 0)
        await asyncio.to_thread(wait_until, lambda: engine.status().is_healthy)
        assert engine.pid not in (None, killed)
        after = [list(engine.submit(request)) for request in requests]
        assert all(same(*pair) for pair in zip(before, after, strict=True))
    finally:
        await asyncio.to_thread(engine.close)


async def _read(stream: Any) -> list[GenerationChunk]:
    return [chunk async for chunk in stream]


def test_without_a_process_it_is_not_healthy_and_says_when_there_will_be_one(
    causal_base: BaseModel,
) -> None:
    engine = process_engine(causal_base)  # this one stays dead for an hour
    assert isinstance(engine, ProcessEngine)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: not engine.status().is_healthy)
    assert engine.status().detail.startswith("its process was killed by signal 9")
    assert engine.pid is None
    with pytest.raises(EngineDownError, match=r"it starts again in \d+ s") as caught:
        engine.submit(GenerationRequest((5, 6), SHORT))
    assert 0 < caught.value.retry_after_seconds <= 3600
    with pytest.raises(EngineDownError):
        engine.keeps_deltas(lora(causal_base, seed=1))
    close_process_engines()
    assert engine.status().detail.startswith("its process was killed by signal 9")
    with pytest.raises(EngineError, match="closed"):
        engine.submit(GenerationRequest((5, 6), SHORT))


def test_a_process_that_hangs_as_a_whole_is_killed_and_its_rows_are_told(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a step holds Python's lock for ever: the process cannot say that it hangs."""
    monkeypatch.setattr(process_engine_file, "_MARGIN_SECONDS", 1.0)
    base = replace(causal_base, max_positions=None, name="hangs")
    engine = process_engine(base, EngineOptions(max_step_seconds=4.0))
    assert isinstance(engine, ProcessEngine)
    chunks = iter(engine.submit(GenerationRequest((5, 6), ENDLESS)))
    next(chunks)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="the engine has stopped: its process said nothing for 5"):
        list(chunks)
    wait_until(lambda: engine.pid is None)
    assert engine.status().detail == "its process said nothing for 5 s"
    with pytest.raises(EngineDownError):
        engine.submit(GenerationRequest((5, 6), SHORT))
    close_process_engines()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_cannot_build_the_engine_tells_its_owner_why(
    causal_base: BaseModel,
) -> None:
    """A model whose layers were changed is found out where it is built again."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=4, eos_token_id=1, bos_token_id=2)
    )
    model.transformer.h[0].mlp.act = nn.Tanh()
    changed = BaseModel.from_memory(model, causal_base.tokenizer, name="changed")
    engine = process_engine(changed)
    stream = engine.submit(GenerationRequest((5, 6), SHORT))
    with pytest.raises(NotSupportedError, match="'changed' was changed after it was built"):
        list(stream)
    assert "was changed after it was built" in engine.status().detail
    close_process_engines()
