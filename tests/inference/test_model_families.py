"""Where rows of many families of models run, as the documents say, and what they answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fixtures.model_families import tiny_model

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.registry import make_engine
from luthier.resources.base_model import BaseModel

PAGE = Path(__file__).parents[2] / "docs" / "generation.md"


def families() -> dict[str, str]:
    """Where rows of each family run, by the table in the documents."""
    section = PAGE.read_text("utf-8").split("## Which models share a batch")[1].split("\n## ")[0]
    found = {}
    for place, names in re.findall(r"^\| (batch|encoder alone|alone) \| (.+) \|$", section, re.M):
        found.update(dict.fromkeys(re.findall(r"`([\w-]+)`", names), place))
    return found


FAMILIES = families()


def test_the_table_was_found() -> None:
    assert set(FAMILIES.values()) == {"batch", "encoder alone", "alone"}
    assert len(FAMILIES) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_run_where_the_documents_say_and_give_what_transformers_generates(
    family: str, causal_base: BaseModel
) -> None:
    base = BaseModel.from_memory(tiny_model(family), causal_base.tokenizer, name=family)
    prompts = [tuple((7 * n + 11 * i) % 390 + 5 for i in range(28 - 5 * n)) for n in range(6)]
    sampling = SamplingParams(max_new_tokens=4)
    engine = make_engine(base, EngineOptions(max_step_tokens=40))
    try:
        streams = [engine.submit(GenerationRequest(ids, sampling)) for ids in prompts]
        answers = [[token.token_id for chunk in s for token in chunk.tokens] for s in streams]
    finally:
        engine.close()
    assert isinstance(engine, BatchedEngine) is (FAMILIES[family] != "alone")
    alone = tiny_model(family)
    for ids, answer in zip(prompts, answers, strict=True):
        given = torch.tensor([ids])
        output = alone.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            num_beams=1,
            max_new_tokens=4,
            eos_token_id=list(base.eos_token_ids),
            pad_token_id=0,
        )
        assert answer == output[0, 1 if base.kind == "seq2seq" else len(ids) :].tolist()
    assert len({tuple(answer) for answer in answers}) > 1
