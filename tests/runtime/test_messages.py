"""From protobuf messages to what services take."""

from __future__ import annotations

import pytest
from google.protobuf.message_factory import GetMessageClass

from luthier.errors import InvalidInputError
from luthier.modules.service_package import service_packages
from luthier.runtime.messages import parse, set_fields, training_request


def message_of(rpc: str, **fields):
    packages = service_packages()
    methods = {**packages.inference.descriptor.methods_by_name}
    methods.update(packages.training.descriptor.methods_by_name)
    return GetMessageClass(methods[rpc].input_type)(**fields)


def test_only_what_was_set_is_there_and_defaults_that_were_set_are():
    message = message_of(
        "TextGenerationTaskPredict",
        text="x",
        max_new_tokens=0,
        stop_sequences=["a"],
        seed=2**64 - 1,
    )
    assert set_fields(message) == {
        "text": "x",
        "max_new_tokens": 0,
        "stop_sequences": ["a"],
        "seed": 2**64 - 1,
    }


def test_bytes_become_the_message_or_an_error():
    message = message_of("TextGenerationTaskPredict", text="x")
    assert parse(message.DESCRIPTOR, message.SerializeToString()) == message
    with pytest.raises(InvalidInputError, match="TextGenerationTaskRequest"):
        parse(message.DESCRIPTOR, b"\xff")


def test_a_train_request_is_taken_apart():
    message = message_of(
        "TextGenerationTaskPeftPromptTuningTrain",
        model_name="m",
        output_path={"path": "p"},
        parameters={
            "base_model": "b",
            "num_epochs": 2,
            "tuning_config": {"num_virtual_tokens": 4, "output_model_types": ["DECODER"]},
            "train_stream": {"jsondata": {"data": [{"input": "a", "output": "b"}]}},
            "val_stream": {"file": {"filename": "v.jsonl"}},
        },
    )
    request = training_request("id", message)
    assert (request.module_id, request.model_name, request.output_path.path) == ("id", "m", "p")
    assert request.parameters == {
        "base_model": "b",
        "num_epochs": 2,
        "tuning_config": {"num_virtual_tokens": 4, "output_model_types": ["DECODER"]},
    }
    assert request.train_source.data_stream.data[0].input == "a"
    assert request.validation_source.data_stream.filename == "v.jsonl"


def test_what_is_absent_is_none():
    request = training_request("id", message_of("TextGenerationTaskTextGenerationTrain"))
    assert (request.model_name, request.parameters) == ("", {})
    assert request.train_source is request.validation_source is request.output_path is None


@pytest.mark.parametrize("method", ["PeftPromptTuning", "LoraTuning", "TextGeneration"])
def test_settings_that_are_0_and_conversations_arrive(method):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "weight": 0}]
    stream = {"jsondata": {"data": [{"messages": said}]}}
    message = message_of(
        f"TextGenerationTask{method}Train",
        model_name="m",
        parameters={
            "train_stream": stream,
            "val_stream": stream,
            "training_options": {"weight_decay": 0, "mask_prompt_labels": False},
        },
    )
    request = training_request("id", parse(message.DESCRIPTOR, message.SerializeToString()))
    assert request.parameters == {
        "training_options": {"weight_decay": 0.0, "mask_prompt_labels": False}
    }
    for source in (request.train_source, request.validation_source):
        (record,) = source.data_stream.data
        assert [each.weight for each in record.messages] == [None, 0]
