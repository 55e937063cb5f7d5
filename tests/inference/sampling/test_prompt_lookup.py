"""Guessing must never change a token; the reference is the same engine without guesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fixtures.fake_rows import fake_memory, fake_row

from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.inference.base import GenerationChunk, GenerationRequest
from luthier.inference.batch_rows import RowSlice, SliceLogits
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.sampling.prompt_lookup import PromptLookup
from luthier.resources.base_model import BaseModel

TEXTS = ("hello hello hello hello", "The screen stays black.", "a b c a b c a b")
WAYS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 120},
    {"max_new_tokens": 60, "token_logprobs": True, "generated_tokens": True},
    {"max_new_tokens": 60, "repetition_penalty": 0.6},
    {"max_new_tokens": 60, "exponential_decay_length_penalty": (20, 1.2)},
    {"max_new_tokens": 60, "input_tokens": True, "token_ranks": True},
    {"max_new_tokens": 60, "decoding_method": SAMPLING, "seed": 4, "temperature": 0.3},
    {"max_new_tokens": 60, "decoding_method": SAMPLING, "seed": 5, "repetition_penalty": 0.1},
)


@pytest.fixture
def guessing(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base, EngineOptions(prompt_lookup_tokens=5))
    yield engine
    engine.close()


@pytest.fixture
def plain(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base)
    yield engine
    engine.close()


def requests_for(base_model: BaseModel, **sampling: Any) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            tuple(base_model.tokenizer(text)["input_ids"]), SamplingParams(**sampling)
        )
        for text in TEXTS
    ]


def told(chunks: list[GenerationChunk]) -> Any:
    return [
        (chunk.text, [(token.token_id, token.rank) for token in chunk.tokens], chunk.finish_reason)
        for chunk in chunks
    ]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_tokens_texts_and_reasons_are_those_without_guesses(
    guessing: BatchedEngine, plain: BatchedEngine, causal_base: BaseModel, way: dict[str, Any]
) -> None:
    requests = requests_for(causal_base, **way)
    expected = [told(list(plain.submit(request))) for request in requests]
    assert [told(list(guessing.submit(request))) for request in requests] == expected
    streams = [guessing.submit(request) for request in requests]
    assert [told(list(stream)) for stream in streams] == expected


@pytest.mark.parametrize("way", [{}, {"decoding_method": SAMPLING, "seed": 6}], ids=str)
def test_a_text_that_repeats_itself_takes_fewer_steps(
    guessing: BatchedEngine,
    plain: BatchedEngine,
    causal_base: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    way: dict[str, Any],
) -> None:
    slices: list[int] = []
    run = PackedRunner.run

    def counted(self: PackedRunner, planned: Sequence[RowSlice]) -> list[SliceLogits]:
        slices.extend(each.count for each in planned)
        return run(self, planned)

    monkeypatch.setattr(PackedRunner, "run", counted)
    # What was said becomes likelier, so the text is sure to repeat itself.
    request = requests_for(causal_base, max_new_tokens=60, repetition_penalty=0.1, **way)[0]
    told_plainly = told(list(plain.submit(request)))
    num_steps = len(slices)
    assert told(list(guessing.submit(request))) == told_plainly
    num_guessing_steps = len(slices) - num_steps
    assert num_guessing_steps < num_steps / 2
    assert max(slices[num_steps + 1 :]) == 1 + 5


def test_beside_many_rows_only_likely_tokens_are_guessed() -> None:
    def num_guessed(num_rows: int) -> set[int]:
        memory = fake_memory()
        rows = [fake_row([1, 2, 3, 4, 5, 6, 2, 3]) for _ in range(num_rows)]
        for row in rows:
            assert memory.admit(row)
            row.num_computed = row.num_positions - 1
        slices = [RowSlice(row, row.num_computed, 1) for row in rows]
        lookup = PromptLookup(memory, max_tokens=20, max_rows=num_rows)
        return {len(each.drafted) for each in lookup.with_drafts(slices)}

    assert [num_guessed(num_rows) for num_rows in (1, 8, 24)] == [{9}, {2}, {0}]


@pytest.mark.parametrize(("max_rows", "most"), [(1, 1), (2, 4)])
def test_no_tokens_are_guessed_beside_more_rows_than_allowed(max_rows: int, most: int) -> None:
    memory = fake_memory()
    rows = [fake_row([5, 6, 7] * 4) for _ in range(2)]
    for row in rows:
        assert memory.admit(row)
        row.num_computed = row.num_positions - 1
    slices = [RowSlice(row, row.num_computed, 1) for row in rows]
    lookup = PromptLookup(memory, max_tokens=3, max_rows=max_rows)
    assert [each.count for each in lookup.with_drafts(slices)] == [most] * 2
