from __future__ import annotations

from collections.abc import Callable

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.prompts import prepare_prompt
from luthier.inference.sequences import GeneratedSequence, Vocabulary
from luthier.resources.base_model import BaseModel


def row_of(base: BaseModel, adapter: Adapter | None, **sampling: object) -> BatchRow:
    request = GenerationRequest((7, 8, 9), SamplingParams(**sampling), adapter)  # type: ignore[arg-type]
    sequence = GeneratedSequence(
        request,
        prompt=prepare_prompt(base, request),
        vocabulary=Vocabulary(base.tokenizer, frozenset(base.eos_token_ids)),
        prior_token_ids=request.input_ids,
    )
    return BatchRow(sequence, adapter_key="")


def test_positions_are_virtual_then_prompt_then_generated(
    causal_base: BaseModel, make_prompt: Callable[..., Adapter]
) -> None:
    row = row_of(causal_base, make_prompt(causal_base, seed=1, num_virtual_tokens=2))
    row.sequence.token_ids.extend([50, 51])
    assert row.num_positions == 7
    assert list(row.token_ids(0, 7)) == [0, 0, 7, 8, 9, 50, 51]
    assert list(row.token_ids(4, 6)) == [9, 50]
    assert row.largest_size == 2 + 3 + 20


def test_logits_are_needed_at_the_end_and_for_a_measured_prompt(causal_base: BaseModel) -> None:
    row = row_of(causal_base, None)
    assert RowSlice(row, 0, 2).num_logits == 0
    assert RowSlice(row, 0, 3).num_logits == 1
    measured = row_of(causal_base, None, input_tokens=True, token_ranks=True)
    assert RowSlice(measured, 0, 2).num_logits == 2


def test_tenants_share_an_adapters_prefix_and_no_text(
    causal_base: BaseModel, make_prompt: Callable[..., Adapter]
) -> None:
    adapter = make_prompt(causal_base, seed=1, num_virtual_tokens=2)

    def keys(tenant: str) -> list[str]:
        request = GenerationRequest(tuple(range(20, 60)), SamplingParams(), adapter, tenant=tenant)
        sequence = GeneratedSequence(
            request,
            prompt=prepare_prompt(causal_base, request),
            vocabulary=Vocabulary(causal_base.tokenizer, frozenset()),
            prior_token_ids=request.input_ids,
        )
        return [block.key for block in BatchRow(sequence, adapter_key="k").prefix_blocks()]

    assert keys("a") == keys("a")
    assert len(keys("a")) == len(keys("b")) == len(keys("")) == 3
    assert keys("a")[0] == keys("b")[0] == keys("")[0] == "k"
    assert not set(keys("a")[1:]) & set(keys("b")[1:] + keys("")[1:])
