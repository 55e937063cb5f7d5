"""Prompt tuning from records to virtual tokens, beside PEFT's on the same model and rows."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune

NUM_STEPS = 50
LEARNING_RATE = 0.02


def _base(folder: Any) -> BaseModel:
    """In fp64, so that nothing but the arithmetic's meaning can tell two curves apart."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(folder), name="base")


def test_the_loop_goes_down_the_curve_of_peft(tiny_causal_dir: Any) -> None:
    records = [
        GenerationTrainRecord(input=f"message {number} about {word}", output=word)
        for number, word in enumerate(["billing", "account", "delivery", "technical"])
    ]
    base = _base(tiny_causal_dir)
    start = torch.randn(
        6, base.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    adapter = SoftPrompt(start.clone(), kind="causal", places=("decoder",))
    options = TrainingOptions(
        num_epochs=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        batch_size=4,
        accumulate_steps=1,
        schedule="constant",
        weight_decay=0.0,
    )
    ours = [point.value for point in tune(base, adapter, records, options=options).losses]

    model = peft.get_peft_model(
        _base(tiny_causal_dir).model,
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(start)),
    ).eval()
    (embeddings,) = (each for each in model.parameters() if each.requires_grad)
    with torch.no_grad():
        embeddings.data = start.clone()
    optimizer = torch.optim.AdamW([embeddings], lr=LEARNING_RATE, weight_decay=0.0)
    rows = _rows_by_hand(base, records)
    theirs = []
    for _ in range(NUM_STEPS):
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours[-1] < 0.8 * ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3


def _rows_by_hand(base: BaseModel, records: list[GenerationTrainRecord]) -> dict[str, torch.Tensor]:
    """What the loop feeds, written out: the label ends with the end of sequence."""
    tokenizer = base.tokenizer
    rows = []
    for record in records:
        source = tokenizer(record.input)["input_ids"]
        target = tokenizer(record.output, add_special_tokens=False)["input_ids"]
        target = [*target, tokenizer.eos_token_id]
        rows.append((source + target, [-100] * len(source) + target))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for row, (ids, wanted) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        labels[row, : len(wanted)] = torch.tensor(wanted)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
