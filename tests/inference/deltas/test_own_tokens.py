"""Tokens that only an adapter knows: looked up token by token, and served beside all others."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.lora_models import disturb
from fixtures.marker_tokens import marker_lora, on_resized_model
from fixtures.process_engines import close_process_engines, process_engine
from torch import nn

from luthier.adapters.added_tokens import OwnTokens
from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import Engine, GenerationChunk, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.deltas.own_tokens import look_up_tokens
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

CPU = torch.device("cpu")
#: Ids 400 to 402 are the markers; the tiny vocabularies end at 399.
PROMPTS = ((401, 87, 337, 225, 1, 402), (401, 50, 402, 401, 60, 402), (9, 400, 10, 11))
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.6},
)


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    close_process_engines()


@pytest.fixture(
    params=["plain", "batched", pytest.param("process", marks=pytest.mark.slow)], scope="module"
)
def make_engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    kinds: dict[str, Callable[..., Engine]] = {
        "plain": PlainEngine,
        "batched": BatchedEngine,
        "process": process_engine,
    }
    return kinds[request.param]


class _Scaled(nn.Embedding):
    embed_scale = 3.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embed_scale


@pytest.mark.parametrize("kind", [nn.Embedding, _Scaled])
def test_each_part_is_looked_up_in_the_table_that_is_its_own(kind: type[nn.Embedding]) -> None:
    generator = torch.Generator().manual_seed(1)
    embed = kind(10, 4).requires_grad_(False)
    first = OwnTokens({"<a>": 10, "<b>": 3}, torch.randn(2, 4, generator=generator))
    second = OwnTokens({"<a>": 10}, torch.randn(1, 4, generator=generator))
    parts = [(None, 2), (first, 3), (second, 2), (None, 1)]
    ids = [3, 4, 10, 3, 5, 10, 3, 3]
    got = look_up_tokens(embed, list(ids), parts, device=CPU)
    grown = torch.cat([embed.weight, torch.full((1, 4), torch.nan)])
    tables = {None: grown, first: grown.clone(), second: grown.clone()}
    for own in (first, second):
        for token_id, row in zip(own.ids.values(), own.rows, strict=True):
            tables[own][token_id] = row
    owners = [own for own, count in parts for _ in range(count)]
    expected = torch.stack([tables[own][i] for own, i in zip(owners, ids, strict=True)])
    torch.testing.assert_close(got, expected[None] * getattr(embed, "embed_scale", 1.0))


def _request(
    prompt: tuple[int, ...], adapter: Adapter | None, **sampling: Any
) -> GenerationRequest:
    params = SamplingParams(max_new_tokens=6, generated_tokens=True, **sampling)
    return GenerationRequest(prompt, params, adapter)


def _chunks(engine: Engine, requests: list[GenerationRequest]) -> list[list[GenerationChunk]]:
    return [list(stream) for stream in [engine.submit(each) for each in requests]]


def _ids(chunks: list[GenerationChunk]) -> list[int]:
    return [token.token_id for chunk in chunks for token in chunk.tokens]


def test_a_row_says_what_peft_says_on_a_resized_model(
    base_model: BaseModel, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    adapter = marker_lora(base_model)
    theirs = on_resized_model(adapter, base_model, tmp_path / "a")
    folder = tmp_path / "a"
    stored = StoredAdapter(
        load_adapter(folder, base_model=base_model), folder, base_model=base_model
    )
    engine = make_engine(base_model)
    try:
        for rules in RULES:
            requests = [
                _request(prompt, each, **rules) for prompt in PROMPTS for each in (adapter, stored)
            ]
            got = [_ids(chunks) for chunks in _chunks(engine, requests)]
            for index, prompt in enumerate(PROMPTS):
                output = theirs.generate(
                    input_ids=torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                    max_new_tokens=6,
                    do_sample=False,
                    suppress_tokens=[400, 401, 402],
                    **rules,
                )[0].tolist()
                start = len(prompt) if base_model.kind == "causal" else 1
                assert got[2 * index] == got[2 * index + 1] == output[start:], (rules, prompt)
    finally:
        engine.close()


def test_any_mix_of_rows_gives_what_each_gives_alone(base_model: BaseModel) -> None:
    first, second = marker_lora(base_model, seed=1), marker_lora(base_model, seed=2)
    table = "embed_tokens" if base_model.kind == "causal" else "shared"
    whole = create_lora(base_model.model, LoraConfig(rank=2, modules_to_save=(table,)), seed=3)
    disturb(whole, seed=3)
    plain = (9, 10, 11, 50)
    requests = [
        _request(prompt, adapter, token_logprobs=True)
        for prompt, adapter in [
            (plain, None),
            *((prompt, adapter) for prompt in PROMPTS for adapter in (first, second)),
            (plain, first),
            (plain, whole),
            (PROMPTS[0][1:-1], None),
        ]
    ]
    engine, alone = BatchedEngine(base_model), PlainEngine(base_model)
    try:
        assert engine.keeps_deltas(first)
        together = _chunks(engine, requests)
        for request, chunks in zip(requests, together, strict=True):
            (expected,) = _chunks(alone, [request])
            assert _ids(chunks) == _ids(expected)
            for got, wanted in zip(chunks, expected, strict=True):
                for ours, theirs in zip(got.tokens, wanted.tokens, strict=True):
                    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        texts = {tuple(_ids(chunks)) for chunks in together}
        assert len(texts) > len(requests) // 2
    finally:
        engine.close()
        alone.close()


def test_a_prompts_own_tokens_are_named_and_have_no_probability(
    causal_base: BaseModel, make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    adapter, prompt = marker_lora(causal_base), PROMPTS[1]
    theirs = on_resized_model(adapter, causal_base, tmp_path / "a")
    with torch.no_grad():
        logits = theirs(torch.tensor([prompt])).logits[0, :, :400]
    expected = logits.log_softmax(-1)
    engine = make_engine(causal_base)
    try:
        request = _request(prompt, adapter, input_tokens=True, token_logprobs=True)
        (chunks,) = _chunks(engine, [request])
    finally:
        engine.close()
    found = chunks[0].input_tokens
    assert [token.token_id for token in found] == list(prompt)
    assert [found[place].text for place in (0, 2, 3, 5)] == [
        "<|prompt|>", "<|answer|>", "<|prompt|>", "<|answer|>",
    ]  # fmt: skip
    assert [found[place].logprob for place in (0, 2, 3, 5)] == [None] * 4
    for place in (1, 4):
        wanted = expected[place - 1, prompt[place]].item()
        assert found[place].logprob == pytest.approx(wanted, abs=1e-3)


def test_beams_go_on_from_own_tokens(base_model: BaseModel) -> None:
    adapter = marker_lora(base_model)
    request = _request(PROMPTS[0], adapter, num_beams=3, repetition_penalty=1.3)
    engine, alone = BatchedEngine(base_model), PlainEngine(base_model)
    try:
        ours, theirs = _chunks(engine, [request])[0], _chunks(alone, [request])[0]
        assert _ids(ours) == _ids(theirs)
        assert len(_ids(ours)) > 1
    finally:
        engine.close()
        alone.close()


def test_who_does_not_know_a_token_is_refused(
    base_model: BaseModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(base_model)
    message = r"'input_ids\[1\]' must be in 0..399, got 402"
    try:
        with pytest.raises(InvalidInputError, match=message):
            engine.submit(_request((9, 402), None))
        with pytest.raises(InvalidInputError, match=r"'input_ids\[1\]' must be .* got 403"):
            engine.submit(_request((9, 403), marker_lora(base_model)))
    finally:
        engine.close()


def test_a_request_keeps_the_rows_that_it_came_with(causal_base: BaseModel) -> None:
    adapter = marker_lora(causal_base)
    engine = BatchedEngine(causal_base)
    try:
        (before,) = _chunks(engine, [_request(PROMPTS[0], adapter)])
        rows = _rows(adapter)
        with torch.no_grad():
            rows.add_(3.0)
        (after,) = _chunks(engine, [_request(PROMPTS[0], adapter)])
        with torch.no_grad():
            rows.sub_(3.0)
        (again,) = _chunks(engine, [_request(PROMPTS[0], adapter)])
    finally:
        engine.close()
    assert _ids(after) != _ids(before)
    assert _ids(again) == _ids(before)


def test_a_stored_adapter_knows_its_tokens_without_its_tensors(
    causal_base: BaseModel, tmp_path: Path
) -> None:
    adapter = marker_lora(causal_base)
    save_adapter(adapter, tmp_path / "a", base_model_name="tiny")
    stored = StoredAdapter(adapter, tmp_path / "a", base_model=causal_base)
    expected = _rows(adapter).detach().clone()
    del adapter
    gc.collect()
    own = stored.own_tokens()
    assert own is not None
    assert stored._kept() is None
    assert stored.added_tokens() == {"<|system|>": 400, "<|prompt|>": 401, "<|answer|>": 402}
    assert torch.equal(own.rows, expected)


def _rows(adapter: LoraAdapter) -> torch.Tensor:
    assert adapter.token_rows is not None
    return adapter.token_rows.rows
