"""Classification heads through the one loop; the reference is PEFT on transformers' models."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from luthier.adapters.heads.building import create_head
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import save_adapter
from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import CancelledError, InvalidInputError, TrainingDataError
from luthier.resources.base_model import BaseModel
from luthier.training.fusion.fused import tune_many
from luthier.training.job import TuningJob
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

LABELS = ("ham", "spam", "news")
TEXTS = {
    "ham": ("see you at seven", "I will be late, sorry", "thanks for the lovely dinner"),
    "spam": ("win a free prize now", "call 09061701461 to claim", "cheap loans! act now"),
    "news": ("the parliament voted on Monday", "rain is expected in the north", "markets fell"),
}
RECORDS = [
    ClassificationTrainRecord(text=f"{text} ({number})", labels=[label])
    for number in range(3)
    for label, texts in TEXTS.items()
    for text in texts
]
BATCH = 3


def options_of(**changes: Any) -> TrainingOptions:
    values: dict[str, Any] = {
        "num_epochs": 3,
        "learning_rate": 3e-3,
        "batch_size": BATCH,
        "seed": 5,
        "schedule": "constant",
        "silence_progress_bars": True,
        **changes,
    }
    return TrainingOptions(**values)


def new_head(base: BaseModel, *, lora: bool = True) -> ClassificationHead:
    config = LoraConfig(rank=4, target_modules=("q_proj", "down_proj")) if lora else None
    return create_head(base.model, LABELS, lora=config, seed=3)


def losses_of(result: TrainingResult) -> list[float]:
    return [point.value for point in result.losses]


def hashes_of(head: ClassificationHead) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in head.named_parameters()}


def test_losses_are_those_of_peft_on_transformers_classifier(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    """Full batches, so that the order of rows within an epoch has no say in the losses."""
    base = tiny_causal_base
    head = new_head(base)
    save_adapter(head, tmp_path / "start", base_model_name="tiny")
    steps = 25
    options = options_of(batch_size=len(RECORDS), num_epochs=steps, weight_decay=0.0)
    ours = losses_of(tune(base, head, RECORDS, options=options))

    config = type(base.model.config).from_dict(base.model.config.to_dict())
    config.num_labels, config.pad_token_id = len(LABELS), 0
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.base_model.load_state_dict(base.model.base_model.state_dict())
    theirs = peft.PeftModel.from_pretrained(
        classifier, str(tmp_path / "start"), is_trainable=True
    ).eval()
    rows = [torch.tensor(base.tokenizer(record.text)["input_ids"]) for record in RECORDS]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    assert all(int(row[-1]) != 0 for row in rows)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = torch.tensor([LABELS.index(record.labels[0]) for record in RECORDS])
    learned = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert len(learned) == len(list(head.named_parameters()))
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.0)
    expected = []
    for _ in range(steps):
        loss = theirs(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, options.max_grad_norm or 1e9)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert ours == pytest.approx(expected, abs=1e-3)
    assert expected[-1] < 0.7 * expected[0]


@pytest.mark.parametrize("lora", [True, False])
def test_a_head_learns_and_is_evaluated(tiny_causal_base: BaseModel, lora: bool) -> None:
    options = options_of(
        num_epochs=10,
        learning_rate=1e-2 if lora else 0.1,
        metrics=("accuracy", "macro_f1", "loss"),
        evaluate_before_training=True,
    )
    head = new_head(tiny_causal_base, lora=lora)
    result = tune(tiny_causal_base, head, RECORDS, validation=RECORDS[:9], options=options)
    first, last = result.validation_losses[0], result.validation_losses[-1]
    assert (first.metrics["accuracy"] or 0.0) < 0.8 < (last.metrics["accuracy"] or 0.0)
    assert (first.metrics["macro_f1"] or 0.0) < 0.8 < (last.metrics["macro_f1"] or 0.0)
    assert last.value < 0.5 * first.value


def test_packed_rows_give_the_losses_of_padded_ones(
    tiny_causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = losses_of(
        tune(tiny_causal_base, new_head(tiny_causal_base), RECORDS, options=options_of())
    )
    monkeypatch.setattr("luthier.training.networks.network.pack_if_exact", lambda *_, **__: None)
    padded = losses_of(
        tune(tiny_causal_base, new_head(tiny_causal_base), RECORDS, options=options_of())
    )
    assert packed == pytest.approx(padded, abs=1e-4)


def test_a_training_that_was_stopped_goes_on_to_the_same_head(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    options = options_of(save_every_steps=2, num_epochs=2)
    whole = new_head(tiny_causal_base)
    tune(tiny_causal_base, whole, RECORDS, options=options)
    counter = itertools.count()
    with pytest.raises(CancelledError):
        tune(
            tiny_causal_base, new_head(tiny_causal_base), RECORDS, options=options,
            run_folder=tmp_path, should_stop=lambda: next(counter) > 14,
        )  # fmt: skip
    resumed = new_head(tiny_causal_base)
    tune(
        tiny_causal_base, resumed, RECORDS, options=options, run_folder=tmp_path,
        resume_from=tmp_path,
    )  # fmt: skip
    for name, tensor in hashes_of(whole).items():
        assert torch.equal(tensor, hashes_of(resumed)[name]), name


def test_heads_are_trained_beside_each_other_as_alone(tiny_causal_base: BaseModel) -> None:
    alone = new_head(tiny_causal_base)
    tune(tiny_causal_base, alone, RECORDS, options=options_of(num_epochs=1))
    heads = [new_head(tiny_causal_base), new_head(tiny_causal_base)]
    jobs = [TuningJob(head, RECORDS, options_of(num_epochs=1)) for head in heads]
    for outcome in tune_many(tiny_causal_base, jobs):
        assert isinstance(outcome, TrainingResult)
    for head in heads:
        for name, tensor in hashes_of(alone).items():
            torch.testing.assert_close(tensor, hashes_of(head)[name], atol=1e-4, rtol=1e-4)


def test_pairs_of_input_and_label_are_taken_too(tiny_causal_base: BaseModel) -> None:
    pairs = [GenerationTrainRecord(input=r.text, output=r.labels[0]) for r in RECORDS]
    options, base = options_of(num_epochs=1), tiny_causal_base
    expected = losses_of(tune(base, new_head(base), RECORDS, options=options))
    assert losses_of(tune(base, new_head(base), pairs, options=options)) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ClassificationTrainRecord(text="x", labels=["spma"]), "row 2 has label 'spma'.*'spam'"),
        (ClassificationTrainRecord(text="x", labels=["ham", "spam"]), "row 2 has label 'ham,spam'"),
        (ClassificationTrainRecord(text="x", labels=[]), "row 2 has no output"),
        (
            ChatTrainRecord((ChatMessage("user", "a"), ChatMessage("assistant", "ham"))),
            "row 2 is a ChatTrainRecord",
        ),
        (ClassificationTrainRecord(text="x" * 4000, labels=["ham"]), "row 2 has .* tokens"),
    ],
)
def test_a_row_that_has_no_class_is_refused_by_number(
    tiny_causal_base: BaseModel, record: Any, message: str
) -> None:
    options = options_of(max_source_length=10_000)
    with pytest.raises(TrainingDataError, match=message):
        tune(tiny_causal_base, new_head(tiny_causal_base), [RECORDS[0], record], options=options)


def test_a_chat_template_is_refused(tiny_causal_base: BaseModel) -> None:
    for dataset in (
        DatasetOptions(prompt_format="markers"),
        DatasetOptions(chat_template="{{ messages }}"),
    ):
        with pytest.raises(InvalidInputError, match="as the verbalizer writes them"):
            tune(
                tiny_causal_base, new_head(tiny_causal_base), RECORDS,
                options=options_of(), dataset=dataset,
            )  # fmt: skip


def test_metrics_of_classes_are_for_classes(tiny_causal_base: BaseModel) -> None:
    lora = create_lora(tiny_causal_base.model, LoraConfig(rank=2), seed=0)
    with pytest.raises(InvalidInputError, match="accuracy, which compare classes, and lora"):
        tune(tiny_causal_base, lora, RECORDS, options=options_of(metrics=("accuracy",)))


def test_metrics_of_texts_are_not(tiny_causal_base: BaseModel) -> None:
    options = options_of(metrics=("bleu",))
    with pytest.raises(InvalidInputError, match="bleu, which compare generated text"):
        tune(tiny_causal_base, new_head(tiny_causal_base), RECORDS, options=options)
