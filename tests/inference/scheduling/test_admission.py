from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fixtures.fake_rows import fake_memory

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import ClassificationRequest, GenerationRequest
from luthier.inference.options import EngineOptions
from luthier.inference.scheduling.admission import Admission
from luthier.resources.base_model import BaseModel


def make_admission(base: BaseModel, *, num_tokens: int = 64, max_beams: int = 3) -> Admission:
    return Admission(base, EngineOptions(max_beam_rows=max_beams), fake_memory(num_tokens))


def asked(
    ids: tuple[int, ...], adapter: Adapter | None = None, *, beams: int = 1
) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=100, num_beams=beams)
    return GenerationRequest(ids, sampling, adapter)


def test_virtual_tokens_come_first_and_what_changes_layers_stands_before_nothing(
    causal_base: BaseModel, make_prompt: Callable[..., Adapter]
) -> None:
    admission = make_admission(causal_base)
    soft = make_prompt(causal_base, seed=1, num_virtual_tokens=9)
    row = admission.row_of(asked((5, 6), soft), adapter_key="soft", is_bare=False)
    assert (row.num_virtual, row.num_first, row.adapter_key) == (9, 11, "soft")
    lora = create_lora(causal_base.model, LoraConfig(rank=2), seed=1)
    row = admission.row_of(asked((5, 6), lora), adapter_key="lora", is_bare=True)
    assert (row.num_virtual, row.num_first, row.adapter_key) == (0, 2, "lora")
    assert row.sequence.prompt.adapter is None, "nothing of it is copied for its prompt"


@pytest.mark.parametrize(("beams", "num_free"), [(1, 64), (2, 32), (3, 16)])
def test_an_answer_is_as_long_as_the_memory_of_each_beam(
    causal_base: BaseModel, beams: int, num_free: int
) -> None:
    admission = make_admission(causal_base)
    row = admission.row_of(asked((5, 6, 7), beams=beams), adapter_key="", is_bare=False)
    assert len(row.members) == beams
    assert row.largest_size == num_free
    whole = tuple(range(5, 5 + num_free))
    with pytest.raises(InvalidInputError, match=rf"has {num_free} tokens.* holds {64 // beams}"):
        admission.row_of(asked(whole, beams=beams), adapter_key="", is_bare=False)


def test_a_decoder_has_what_the_encoder_leaves(seq2seq_base: BaseModel) -> None:
    admission = make_admission(seq2seq_base)
    row = admission.row_of(asked((5,) * 20), adapter_key="", is_bare=False)
    assert (row.num_encoder, row.num_first) == (20, 1)
    assert row.largest_size == 32, "the encoder takes two blocks of sixteen"


def test_more_beams_than_may_run_are_refused(causal_base: BaseModel) -> None:
    with pytest.raises(InvalidInputError, match="'num_beams' must be at most 3, got 4"):
        make_admission(causal_base).row_of(asked((5,), beams=4), adapter_key="", is_bare=False)


def test_a_classification_is_a_row_that_generates_nothing(causal_base: BaseModel) -> None:
    head = torch.zeros(2, causal_base.hidden_size)
    request = ClassificationRequest((5, 6), head)
    row = make_admission(causal_base).row_of(request, adapter_key="", is_bare=False)
    assert row.sequence.is_scored
    assert row.largest_size - row.num_first == row.sequence.max_new_tokens
