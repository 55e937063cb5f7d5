from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from luthier.data_model.sampling import SamplingParams
from luthier.errors import EngineError, LuthierError
from luthier.inference.base import ClassificationRequest, FinishReason, GenerationRequest
from luthier.inference.batch_rows import BatchRow, RowSlice, SliceLogits
from luthier.inference.channels import Item
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.options import EngineOptions
from luthier.inference.sampling.step_answers import StepAnswers, end_of, ended_in_time
from luthier.inference.scheduling.admission import Admission
from luthier.resources.base_model import BaseModel
from tests.fixtures.fake_rows import fake_memory

PROMPT = (5, 6, 7)


@pytest.fixture
def memory() -> KvMemory:
    return fake_memory()


def admitted(base: BaseModel, memory: KvMemory, *, beams: int = 1, head: bool = False) -> BatchRow:
    sampling = SamplingParams(max_new_tokens=9, min_new_tokens=9, num_beams=beams)
    request: GenerationRequest | ClassificationRequest = GenerationRequest(PROMPT, sampling)
    if head:
        request = ClassificationRequest(PROMPT, torch.eye(base.hidden_size)[:2])
    admission = Admission(base, EngineOptions(), memory)
    row = admission.row_of(request, adapter_key="", is_bare=False)
    assert memory.admit(row)
    return row


def logits_for(base: BaseModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Rows whose best token is known, [N, V]."""
    rows = torch.zeros(len(token_ids), base.vocab_size)
    rows[range(len(token_ids)), list(token_ids)] = 5.0
    return rows


def token_ids(items: Sequence[tuple[BatchRow, Item]], row: BatchRow) -> list[int]:
    chunks = [item for owner, item in items if owner is row]
    assert not any(isinstance(item, LuthierError) for item in chunks)
    return [token.token_id for chunk in chunks for token in chunk.tokens]  # type: ignore[union-attr]


def test_a_row_gets_a_token_at_the_end_of_its_prompt_and_none_before(
    causal_base: BaseModel, memory: KvMemory
) -> None:
    row = admitted(causal_base, memory)
    answers = StepAnswers(memory)
    assert answers.take([RowSlice(row, 0, 2)], {}) == []
    assert row.num_computed == 2
    last = RowSlice(row, 2, 1)
    items = answers.take([last], {row: SliceLogits(last, logits_for(causal_base, [42]))})
    assert token_ids(items, row) == [42]
    assert (row.num_computed, row.num_pending) == (3, 1)


def test_what_goes_wrong_with_a_row_is_its_own(causal_base: BaseModel, memory: KvMemory) -> None:
    good, broken, failed = (admitted(causal_base, memory) for _ in range(3))
    slices = [RowSlice(row, 0, 3) for row in (broken, good, failed)]
    nan = torch.full((1, causal_base.vocab_size), torch.nan)
    error = EngineError("its adapter is gone")
    results: dict[BatchRow, SliceLogits | LuthierError] = {
        broken: SliceLogits(slices[0], nan),
        good: SliceLogits(slices[1], logits_for(causal_base, [42])),
        failed: error,
    }
    items = StepAnswers(memory).take(slices, results)
    assert [row for row, _ in items] == [broken, good, failed]
    assert isinstance(items[0][1], EngineError)
    assert token_ids(items, good) == [42]
    assert items[2][1] is error


@pytest.mark.parametrize(
    ("drafted", "taken"), [((42, 43), [42, 43, 44]), ((42, 9), [42, 43]), ((8, 43), [42])]
)
def test_guesses_are_taken_as_far_as_they_are_right(
    causal_base: BaseModel, memory: KvMemory, drafted: tuple[int, ...], taken: list[int]
) -> None:
    row = admitted(causal_base, memory)
    each = RowSlice(row, 0, 3 + len(drafted), drafted)
    logits = logits_for(causal_base, [42, 43, 44])
    items = StepAnswers(memory).take([each], {row: SliceLogits(each, logits)})
    assert token_ids(items, row) == taken
    assert row.num_pending == 1, "all but the last have keys and values"


def test_a_row_that_is_scored_ends(causal_base: BaseModel, memory: KvMemory) -> None:
    row = admitted(causal_base, memory, head=True)
    each = RowSlice(row, 0, 3)
    hidden = torch.arange(causal_base.hidden_size, dtype=torch.float32)
    result = SliceLogits(each, torch.empty(0, causal_base.vocab_size), hidden)
    ((owner, chunk),) = StepAnswers(memory).take([each], {row: result})
    assert owner is row
    assert not isinstance(chunk, LuthierError)
    assert (chunk.scores, chunk.is_last) == ((0.0, 1.0), True)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_row_whose_time_is_over_ends_with_what_it_has(
    causal_base: BaseModel, memory: KvMemory, beams: int
) -> None:
    row = admitted(causal_base, memory, beams=beams)
    items = ended_in_time(row)
    _, last = items[-1]
    assert not isinstance(last, LuthierError)
    assert last.finish_reason is FinishReason.TIME_LIMIT
    cancelled = end_of(admitted(causal_base, memory), FinishReason.CANCELLED)
    assert not isinstance(cancelled, LuthierError)
    assert cancelled.finish_reason is FinishReason.CANCELLED
