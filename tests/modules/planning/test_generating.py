"""Texts for metrics are those that the tuned model gives when it is served."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import CancelledError
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.inference.registry import engines
from luthier.modules.planning.generating import generate_with
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune

RECORDS = [
    GenerationTrainRecord(input=f"number {number}", output="even" if number % 2 == 0 else "odd")
    for number in range(6)
]


def _prompts(base: BaseModel) -> list[list[int]]:
    return [base.tokenizer(record.input)["input_ids"] for record in RECORDS]


def _by_transformers(model: Any, base: BaseModel) -> list[str]:
    """The reference: one row at a time, by ``generate``."""
    texts = []
    for prompt in _prompts(base):
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
        )[0]
        new = output[len(prompt) :] if base.kind == "causal" else output[1:]
        texts.append(base.tokenizer.decode(new, skip_special_tokens=True))
    return texts


def test_a_whole_model_learns_on_after_it_has_written(tiny_causal_base: BaseModel) -> None:
    base, adapter = tiny_causal_base, FullWeights(tiny_causal_base.model)
    options = TrainingOptions(
        num_epochs=3, learning_rate=1e-3, batch_size=3, accumulate_steps=1, metrics=("bleu",)
    )
    result = tune(
        base,
        adapter,
        RECORDS,
        validation=RECORDS[:2],
        options=options,
        generate=generate_with(base, adapter, max_new_tokens=3),
    )
    assert result.num_steps == 6
    assert all(parameter.requires_grad for _, parameter in adapter.named_parameters())


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_whole_models_write_what_transformers_writes_before_and_after_a_change(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    adapter = FullWeights(base.model)
    generate = generate_with(base, adapter, max_new_tokens=5)
    before = generate(_prompts(base))
    assert before == _by_transformers(copy.deepcopy(base.model), base)
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.mul_(-1.0 if parameter.ndim == 1 else 1.1)
    after = generate(_prompts(base))
    assert after == _by_transformers(copy.deepcopy(adapter.model), base)
    assert after != before


def test_a_training_measures_the_texts_of_its_adapter_as_it_is_then(
    tiny_causal_base: BaseModel,
) -> None:
    adapter = create_lora(tiny_causal_base.model, LoraConfig(rank=8, alpha=16), seed=0)
    options = TrainingOptions(
        num_epochs=30, learning_rate=0.02, batch_size=6, accumulate_steps=1,
        metrics=("exact_match", "token_accuracy"), evaluation_epochs=15,
        evaluate_before_training=True,
    )  # fmt: skip
    result = tune(
        tiny_causal_base,
        adapter,
        RECORDS,
        validation=RECORDS,
        options=options,
        generate=generate_with(tiny_causal_base, adapter, max_new_tokens=8),
    )
    matches = [point.metrics["exact_match"] for point in result.validation_losses]
    assert matches[0] == 0.0
    assert matches[-1] == 1.0


def test_it_stops_when_asked(tiny_causal_base: BaseModel) -> None:
    adapter = create_lora(tiny_causal_base.model, LoraConfig(rank=2), seed=0)
    generate = generate_with(tiny_causal_base, adapter, max_new_tokens=5, should_stop=lambda: True)
    with pytest.raises(CancelledError):
        generate(_prompts(tiny_causal_base))


def test_a_training_starts_no_process_for_its_engine(tiny_causal_base: BaseModel) -> None:
    base = dataclasses.replace(tiny_causal_base)
    known = set(engines())
    options = EngineOptions(process=ProcessOptions())
    adapter = create_lora(base.model, LoraConfig(rank=2), seed=1)
    generate = generate_with(base, adapter, max_new_tokens=2, options=options)
    assert len(generate(_prompts(base))) == len(RECORDS)
    (engine,) = set(engines()) - known
    assert not isinstance(engine, ProcessEngine)
