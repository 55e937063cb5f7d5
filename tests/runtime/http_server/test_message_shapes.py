"""JSON forms of the real messages."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from caikit.interfaces.runtime.data_model import ModelInfo, TrainingStatusResponse

from luthier.data_model.generation import GeneratedTextResult, GeneratedTextStreamResult
from luthier.modules.service_package import service_packages
from luthier.runtime.http_server.message_shapes import component_name, response_schema, shape_of
from luthier.runtime.http_server.shapes import Errors, Integer, OneOf


def request_of(rpc: str):
    packages = service_packages()
    for package in (packages.inference, packages.training):
        if rpc in package.descriptor.methods_by_name:
            return package.descriptor.methods_by_name[rpc].input_type
    raise LookupError(rpc)


def test_a_request_has_the_fields_of_its_message():
    message = request_of("TextGenerationTaskPredict")
    shape = shape_of(message, omit=("text",))
    assert list(shape.fields) == [field.name for field in message.fields if field.name != "text"]
    assert shape.fields["seed"] == Integer(0, 2**64 - 1)


def test_a_source_of_data_is_one_key_with_several_forms():
    message = request_of("TextGenerationTaskPeftPromptTuningTrain")
    source = shape_of(message).fields["parameters"].fields["train_stream"]
    assert list(source.fields) == ["data_stream"]
    choice = source.fields["data_stream"]
    assert isinstance(choice, OneOf)
    assert list(choice.members) == ["jsondata", "file", "list_of_files", "directory", "s3files"]
    data = [{"input": "a", "output": "b"}]
    errors = Errors()
    body = {"data_stream": {"data": data}}
    assert source.decode(body, (), errors) == {"jsondata": {"data": data}}
    assert errors.found == []


def test_names_are_those_that_caikit_nlp_has():
    message = request_of("TextGenerationTaskPeftPromptTuningTrain")
    components: dict = {}
    shape_of(message).schema(components)
    assert set(components) >= {
        "TextGenerationTaskPeftPromptTuningTrainParameters",
        "DataStreamSourceGenerationTrainRecord",
        "DataStreamSourceGenerationTrainRecordJsonData",
        "GenerationTrainRecord",
        "TuningConfig",
        "FileReference",
        "S3Path",
    }


@pytest.mark.parametrize(
    "result",
    [
        GeneratedTextResult(generated_text="x", seed=2**64 - 1),
        GeneratedTextStreamResult(generated_text="x"),
        TrainingStatusResponse(training_id="x", reasons=[]),
        ModelInfo(name="m", loaded=False, module_metadata={"a": "b"}),
    ],
)
def test_what_caikit_writes_is_what_the_schema_says(result):
    components: dict = {}
    schema = response_schema(type(result).get_proto_class().DESCRIPTOR, components)
    document = {**schema, "components": {"schemas": components}}
    jsonschema_rs.validator_for(document).validate(json.loads(result.to_json()))


def test_a_nested_message_bears_its_parents_name():
    source = request_of("TextGenerationTaskPeftPromptTuningTrain").fields_by_name["parameters"]
    stream = source.message_type.fields_by_name["train_stream"].message_type
    nested = stream.fields_by_name["jsondata"].message_type
    assert component_name(nested) == "DataStreamSourceGenerationTrainRecordJsonData"
