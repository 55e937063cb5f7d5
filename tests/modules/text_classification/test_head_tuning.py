"""Heads from labelled texts to a saved model that any process runs."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import luthier
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError
from luthier.modules import HeadTuning, LoraTuning
from luthier.modules import environment as environment_module

QUICK = {"num_epochs": 4, "learning_rate": 0.01, "batch_size": 4, "max_source_length": 32}
WORDS = {"billing": "invoice", "login": "password", "delivery": "parcel"}
ROWS = [
    {"text": f"message number {number} about my {word}", "labels": [label]}
    for number in range(6)
    for label, word in WORDS.items()
]
VERBALIZER = "Ticket: {{input}} Topic:"


@pytest.fixture(scope="module", params=["lora", "alone"])
def model(request, here):
    """A head that has learned. Read only, please."""
    options = {"rank": 4, "use_dora": True} if request.param == "lora" else {"use_lora": False}
    rate = 0.01 if request.param == "lora" else 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_module, "_current", here)
        model = HeadTuning.train(
            "tiny-causal",
            ROWS,
            val_stream=ROWS[:6],
            verbalizer=VERBALIZER,
            **options,
            **(QUICK | {"num_epochs": 12, "learning_rate": rate}),
        )
    yield model
    model.release()


def answers(model, text):
    return [(result.label, result.score) for result in model.run(text).results]


def test_a_head_tells_the_classes_of_its_training_apart(model):
    for row in ROWS:
        ranked = answers(model, row["text"])
        assert ranked[0][0] == row["labels"][0]
        assert {label for label, _ in ranked} == set(WORDS)
        scores = [score for _, score in ranked]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)


def test_the_course_of_the_training_says_accuracy_and_f1(model):
    by_name = {}
    for line in model.training_logs:
        by_name.setdefault(line["name"], []).append(line["data"]["value"])
    assert by_name["validation_loss"][-1] < by_name["validation_loss"][0]
    last = [line["data"] for line in model.training_logs if "validation" in line["name"]][-1]
    assert last["value"] is not None
    assert model.labels == tuple(sorted(WORDS))


def test_a_saved_model_loads_and_says_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    assert isinstance(loaded, HeadTuning)
    assert loaded.base_model is model.base_model
    assert loaded.training_logs == model.training_logs
    assert loaded.verbalizer == VERBALIZER
    text = "where is my parcel"
    assert answers(loaded, text) == answers(model, text)
    assert asyncio.run(loaded.aclassify(text)).to_json() == model.run(text).to_json()
    assert loaded.run_tokenizer(text).token_count == model.run_tokenizer(text).token_count
    loaded.shelve()
    assert answers(loaded, text) == answers(model, text)
    loaded.save(tmp_path / "again")
    assert luthier.load(tmp_path / "again").adapter.content_hash() == model.adapter.content_hash()


def test_a_fresh_process_says_the_same(model, tmp_path, tiny_base_models_dir):
    model.save(tmp_path / "model")
    code = "import luthier, sys; print(luthier.load(sys.argv[1]).run('my parcel').to_json())"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, tmp_path / "model"],
        env={"BASE_MODELS_DIR": str(tiny_base_models_dir), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["results"]
    expected = answers(model, "my parcel")
    assert [each["label"] for each in found] == [label for label, _ in expected]
    assert [each["score"] for each in found] == pytest.approx([score for _, score in expected])


def test_plain_peft_gives_the_same_probabilities(model, tmp_path, tiny_base_models_dir):
    model.save(tmp_path / "model")
    folder = tiny_base_models_dir / "tiny-causal"
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(classifier, tmp_path / "model" / "adapter").eval()
    text = "I lost my password"
    ids = model.base_model.tokenizer(VERBALIZER.replace("{{input}}", text))["input_ids"]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0].softmax(dim=0).tolist()
    ours = dict(answers(model, text))
    assert [ours[label] for label in model.labels] == pytest.approx(expected, abs=1e-5)


def test_what_peft_saved_is_served_under_given_names(tmp_path, tiny_base_models_dir, here):
    folder = tiny_base_models_dir / "tiny-causal"
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(classifier, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    theirs.save_pretrained(tmp_path / "peft")
    ours = HeadTuning.bootstrap("tiny-causal", tmp_path / "peft", labels=["no", "yes"])
    ids = ours.base_model.tokenizer("hello world")["input_ids"]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0].softmax(dim=0).tolist()
    got = dict(answers(ours, "hello world"))
    assert [got["no"], got["yes"]] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InvalidInputError, match="2 classes, got 3 labels"):
        HeadTuning.bootstrap("tiny-causal", tmp_path / "peft", labels=["a", "b", "c"])


@pytest.mark.parametrize(
    "rows",
    [
        [ClassificationTrainRecord(text=row["text"], labels=row["labels"]) for row in ROWS],
        [GenerationTrainRecord(input=row["text"], output=row["labels"][0]) for row in ROWS],
        [{"text": row["text"], "label": row["labels"][0]} for row in ROWS],
        [{"input": row["text"], "output": row["labels"][0]} for row in ROWS],
    ],
)
def test_every_kind_of_record_gives_the_same_head(rows):
    expected = HeadTuning.train("tiny-causal", ROWS, **QUICK).adapter.content_hash()
    assert HeadTuning.train("tiny-causal", rows, **QUICK).adapter.content_hash() == expected


def test_a_table_of_texts_and_labels_is_read(tmp_path):
    table = tmp_path / "rows.csv"
    lines = [f"{row['text']},{row['labels'][0]}" for row in ROWS]
    table.write_text("\n".join(["text,label", *lines]) + "\n", "utf-8")
    expected = HeadTuning.train("tiny-causal", ROWS, **QUICK).adapter.content_hash()
    assert HeadTuning.train("tiny-causal", table, **QUICK).adapter.content_hash() == expected


def test_labels_may_be_named_in_an_order_and_with_more_than_the_data_has():
    labels = ["login", "other", "delivery", "billing"]
    model = HeadTuning.train("tiny-causal", ROWS, labels=labels, **QUICK)
    assert model.labels == tuple(labels)
    assert {label for label, _ in answers(model, "x")} == set(labels)


def test_a_training_goes_on_from_an_earlier_head(model, tmp_path):
    model.save(tmp_path / "model")
    options = {"rank": 4, "use_dora": True} if model.adapter.body else {"use_lora": False}
    again = HeadTuning.train(
        "tiny-causal",
        ROWS,
        verbalizer=VERBALIZER,
        start_from=str(tmp_path / "model"),
        **options,
        **QUICK,
    )
    first = next(line for line in again.training_logs if line["name"] == "loss")
    assert first["data"]["value"] < 0.5
    with pytest.raises(InvalidInputError, match="'use_lora' differs"):
        HeadTuning.train(
            "tiny-causal",
            ROWS,
            start_from=str(tmp_path / "model"),
            use_lora=model.adapter.body is None,
            **QUICK,
        )
    with pytest.raises(InvalidInputError, match="tells 'billing', 'delivery', 'login' apart"):
        HeadTuning.train(
            "tiny-causal",
            ROWS,
            start_from=str(tmp_path / "model"),
            labels=["login", "billing", "delivery"],
            **options,
            **QUICK,
        )


def test_a_seq2seq_base_is_refused_before_its_weights_are_read():
    with pytest.raises(NotSupportedError, match="'tiny-seq2seq' is seq2seq"):
        HeadTuning.plan_train(base_model="tiny-seq2seq", train_stream=ROWS)


def test_a_text_that_is_none_is_refused(model):
    with pytest.raises(InvalidInputError, match="'text' must be a string, got int"):
        model.run(3)
    with pytest.raises(InvalidInputError, match=r"tokens, at most|context holds"):
        model.run("word " * 40_000)


def test_another_adapter_is_refused(tmp_path):
    lora = LoraTuning.train("tiny-causal", [{"input": "a", "output": "b"}], num_epochs=1)
    lora.save(tmp_path / "lora")
    with pytest.raises(NotSupportedError, match="this adapter is lora"):
        HeadTuning.bootstrap("tiny-causal", tmp_path / "lora" / "adapter")


def test_a_damaged_model_is_refused(model, tmp_path):
    model.save(tmp_path / "model")
    weights = Path(tmp_path / "model" / "adapter" / "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(ArtifactError):
        luthier.load(tmp_path / "model")


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": ["q_proj=4"], "layers_to_transform": [0], "initialisation": "pissa"},
        {"modules_to_save": ["embed_tokens"]},
        {"unfreeze_layers": ["norm"]},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_the_lora_below_is_learned_and_saved_as_peft_reads_it(
    options, tmp_path, tiny_causal_dir
):
    model = HeadTuning.train("tiny-causal", ROWS, rank=2, **options, **QUICK)
    model.save(tmp_path / "model")
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_causal_dir, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(classifier, str(tmp_path / "model" / "adapter")).eval()
    ids = torch.tensor([model.base_model.tokenizer(ROWS[0]["text"])["input_ids"]])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits[0].softmax(dim=0).tolist()
    found = dict(answers(model, ROWS[0]["text"]))
    assert found == pytest.approx(dict(zip(model.labels, expected, strict=True)), abs=1e-5)
    model.release()
