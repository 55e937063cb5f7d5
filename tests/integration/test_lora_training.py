"""LoRA through the whole loop, against PEFT trained by hand on the same rows."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from fixtures.padded_rows import padded_by_hand
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.loop import tune
from luthier.training.networks.network import TrainingNetwork

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
}
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


@pytest.fixture(params=["tiny-causal", "tiny-seq2seq"])
def folder(request: pytest.FixtureRequest, tiny_base_models_dir: Any) -> Any:
    return tiny_base_models_dir / request.param


def _base(folder: Any) -> BaseModel:
    """In fp64: the tiny T5 is so rough that curves in fp32 part after a few steps by rounding."""
    auto = AutoModelForSeq2SeqLM if "seq2seq" in folder.name else AutoModelForCausalLM
    model = auto.from_pretrained(folder).double()
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(folder), name=folder.name)


def _theirs(folder: Any, **config: Any) -> Any:
    base = _base(folder)
    task_type = "SEQ_2_SEQ_LM" if base.kind == "seq2seq" else "CAUSAL_LM"
    torch.manual_seed(3)
    return peft.get_peft_model(
        base.model,
        peft.LoraConfig(
            task_type=task_type, target_modules="all-linear", r=4, lora_alpha=8, **config
        ),
    ).eval()


def _batch(base: BaseModel) -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    width = 9 if base.kind == "causal" else 4
    labels = torch.randint(5, 300, (3, width), generator=generator)
    if base.kind == "causal":
        labels = torch.where(torch.arange(9) < 5, -100, ids)
        labels = labels.masked_fill(mask == 0, -100)
    return TokenBatch(
        rows=(1, 2, 3),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        num_input_tokens=int(mask.sum()),
        num_label_tokens=int((labels != -100).sum()),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_the_training_network_are_those_of_peft(
    folder: Any, kind: str
) -> None:
    theirs = _theirs(folder, **KINDS[kind])
    base = _base(folder)
    config = LoraConfig.from_mapping({"rank": 4, "alpha": 8, **KINDS[kind]})
    adapter = create_lora(base.model, config, seed=3)
    batch = _batch(base)
    num_labels = int((batch.labels != -100).sum())
    loss = TrainingNetwork(base, adapter).loss_sum(batch) / num_labels
    loss.backward()
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    expected.backward()

    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-6, rtol=1e-6)
    gradients = {
        name.removeprefix("base_model.model.")
        .replace("modules_to_save.default.", "")
        .replace(".default", "")
        .replace("magnitude_vector.weight", "magnitude_vector"): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert gradients.keys() == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_loop_goes_down_the_curve_of_peft(folder: Any, kind: str) -> None:
    records = [
        GenerationTrainRecord(input=f"message {number} about {word}", output=word)
        for number, word in enumerate(["billing", "account", "delivery", "technical"])
    ]
    base = _base(folder)
    # Where the tiny T5 learns faster, every rounding of a loss sends it another way.
    learning_rate, fall = (5e-3, 0.2) if base.kind == "causal" else (2e-4, 0.92)
    adapter = create_lora(base.model, LoraConfig(rank=4, alpha=8, **KINDS[kind]), seed=3)
    options = TrainingOptions(
        num_epochs=50,
        learning_rate=learning_rate,
        batch_size=4,
        accumulate_steps=1,
        schedule="constant",
        weight_decay=0.0,
    )
    ours = [point.value for point in tune(base, adapter, records, options=options).losses]

    model, tokenizer = _theirs(folder, **KINDS[kind]), base.tokenizer
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    inputs = _rows_by_hand(records, tokenizer, is_seq2seq=base.kind == "seq2seq")
    theirs = []
    for _ in range(50):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours[-1] < fall * ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3


def _rows_by_hand(
    records: list[GenerationTrainRecord], tokenizer: Any, *, is_seq2seq: bool
) -> dict[str, torch.Tensor]:
    """What the loop feeds, written out: the label ends with the end of sequence."""
    rows = []
    for record in records:
        source = tokenizer(record.input)["input_ids"]
        target = tokenizer(record.output, add_special_tokens=False)["input_ids"]
        target = [*target, tokenizer.eos_token_id]
        if is_seq2seq:
            rows.append((source, target))
        else:
            rows.append((source + target, [-100] * len(source) + target))
    return padded_by_hand(rows, pad_token_id=tokenizer.pad_token_id)


def test_dropout_and_checkpointing_are_repeatable_and_checkpointing_changes_nothing(
    folder: Any,
) -> None:
    records = [GenerationTrainRecord(input=f"{n} is even", output=str(n % 2)) for n in range(6)]
    base = _base(folder)
    curves = []
    for checkpointing in (False, True, True):
        adapter = create_lora(base.model, LoraConfig(rank=2, dropout=0.4), seed=1)
        options = TrainingOptions(
            num_epochs=2,
            learning_rate=1e-2,
            batch_size=3,
            accumulate_steps=1,
            gradient_checkpointing=checkpointing,
        )
        curves.append([p.value for p in tune(base, adapter, records, options=options).losses])
    plain = create_lora(base.model, LoraConfig(rank=2), seed=1)
    without = tune(base, plain, records, options=options)
    assert curves[1] == curves[2]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert [p.value for p in without.losses] != pytest.approx(curves[0], abs=1e-4)
