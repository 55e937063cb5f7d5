"""Heads over real wires: trained over each, served over both, by a server in its own process."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from fixtures.server_process import server_process
from fixtures.tuned_server import start_over_grpc
from google.protobuf.message_factory import GetMessageClass
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier.modules.service_package import service_packages

TRAIN = "TextClassificationTaskHeadTuningTrain"
PREDICT = "TextClassificationTaskPredict"
WORDS = {"billing": "invoice", "login": "password", "delivery": "parcel"}
ROWS = [
    {"text": f"message number {number} about my {word}", "labels": [label]}
    for number in range(6)
    for label, word in WORDS.items()
]


def body_of(name: str, **parameters: object) -> dict[str, object]:
    given = {
        "base_model": "tiny-causal",
        "train_stream": {"data_stream": {"data": ROWS}},
        "num_epochs": 12,
        "batch_size": 4,
    }
    return {"model_name": name, "parameters": {**given, **parameters}}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_base_models_dir):
    with server_process(tmp_path_factory.mktemp("heads"), tiny_base_models_dir, {}) as server:
        over_http = body_of("with-lora", learning_rate=0.01, rank=4)
        alone = body_of("alone", learning_rate=0.2, use_lora=False)
        training_id = start_over_grpc(server, TRAIN, alone)
        assert server.train(TRAIN, over_http, seconds=240)["state"] == "COMPLETED"
        assert server.wait_for_training(training_id, seconds=240)["state"] == "COMPLETED"
        yield server


def classified(server, model_id: str, text: str) -> dict[str, float]:
    with server.http as client:
        given = {"model_id": model_id, "inputs": text}
        response = client.post("/api/v1/task/text-classification", json=given)
    assert response.status_code == 200, response.text
    return {each["label"]: each["score"] for each in response.json()["results"]}


@pytest.mark.parametrize("model_id", ["with-lora", "alone"])
def test_a_head_is_served_as_plain_peft_would_over_both_wires(
    server, model_id: str, tiny_base_models_dir: Path
) -> None:
    folder = tiny_base_models_dir / "tiny-causal"
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    adapter = server.models_dir / model_id / "adapter"
    theirs = peft.PeftModel.from_pretrained(classifier, str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    package = service_packages().inference
    request_class = GetMessageClass(package.descriptor.methods_by_name[PREDICT].input_type)
    for row in ROWS[:3]:
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            scores = theirs(input_ids=ids).logits[0].softmax(dim=0).tolist()
        expected = dict(zip(sorted(WORDS), scores, strict=True))
        over_http = classified(server, model_id, row["text"])
        assert over_http == pytest.approx(expected, abs=1e-5)
        assert next(iter(over_http)) == row["labels"][0]
        with server.channel() as channel:
            call = getattr(package.stub_class(channel), PREDICT)
            metadata = (("mm-model-id", model_id),)
            answer = call(request_class(text=row["text"]), metadata=metadata, timeout=60)
        over_grpc = {each.label: each.score for each in answer.results}
        assert over_grpc == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_learned_is_refused_at_once(server) -> None:
    rows = [*ROWS, {"text": "x", "labels": ["billing", "login"]}]
    given = body_of("refused", train_stream={"data_stream": {"data": rows}})
    with server.http as client:
        response = client.post(f"/api/v1/{TRAIN}", json=given)
    assert response.status_code == 400
    assert "train_stream row 19 has 2 labels" in response.json()["details"]
