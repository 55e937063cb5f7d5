"""The document: whole, true, and readable for clients of caikit-nlp."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from fixtures.echo_runtime import RunningRuntime
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from luthier.data_model.sampling import SAMPLING_FIELDS
from luthier.runtime.http_server.openapi import Document
from luthier.runtime.http_server.shapes import Object, Text


def no_failure_of_ours(context: Any, response: Any, case: Any) -> None:
    """501 is an answer: understood, and not offered. 500 is a bug."""
    assert response.status_code != 500, response.text


CHECKS = [
    no_failure_of_ours,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ROUTES = [
    ("POST", "/api/v1/task/text-generation"),
    ("POST", "/api/v1/task/server-streaming-text-generation"),
    ("POST", "/api/v1/task/tokenization"),
    ("POST", "/api/v1/task/text-generation/job"),
    ("GET", "/api/v1/task/text-generation/job"),
    ("DELETE", "/api/v1/task/text-generation/job"),
    ("GET", "/api/v1/task/text-generation/job/results"),
    ("POST", "/api/v1/TextGenerationTaskPeftPromptTuningTrain"),
    ("POST", "/api/v1/TextGenerationTaskTextGenerationTrain"),
    ("GET", "/management/trainings"),
    ("DELETE", "/management/trainings"),
    ("POST", "/management/models"),
    ("DELETE", "/management/models"),
    ("GET", "/info/version"),
    ("GET", "/info/models"),
    ("GET", "/info/engines"),
    ("GET", "/health"),
]


@pytest.fixture(scope="module")
def spec(runtime: RunningRuntime) -> dict[str, Any]:
    with runtime.http as client:
        return client.get("/openapi.json").json()


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for item in value.values() for ref in references(item)]
    if isinstance(value, list):
        return [ref for item in value for ref in references(item)]
    return []


@pytest.mark.parametrize(("verb", "path"), ROUTES)
def test_every_route_is_in_the_document(spec, verb, path):
    assert verb.lower() in spec["paths"][path]


def test_no_reference_dangles(spec):
    known = {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}
    assert references(spec) and set(references(spec)) <= known


def test_schemas_have_the_names_that_the_peer_gives_them(spec, shared_dir):
    peer = json.loads((shared_dir / "reference" / "wire" / "openapi.json").read_text())
    theirs = peer["components"]["schemas"]
    for name in (
        "GeneratedTextStreamResult",
        "GeneratedToken",
        "ProducerId",
        "TokenStreamDetails",
        "DataStreamSourceGenerationTrainRecord",
        "GenerationTrainRecord",
        "S3Path",
        "TextGenerationTaskPeftPromptTuningTrainParameters",
        "TextGenerationTaskTextGenerationTrainParameters",
        "TuningConfig",
    ):
        ours = spec["components"]["schemas"][name]
        known = list(theirs[name]["properties"])
        # Fields of ours come after theirs.
        assert list(ours["properties"])[: len(known)] == known, name
        assert ours["title"] == theirs[name]["title"]


def test_the_parameters_are_inline_as_caikit_nlps_client_reads_them(spec):
    def simplified(parameters: dict[str, Any]) -> dict[str, Any]:
        assert len(parameters) == 1
        return {
            name: simplified(each) if "allOf" in each else each["type"]
            for name, each in parameters["allOf"][0]["properties"].items()
        }

    post = spec["paths"]["/api/v1/task/text-generation"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    found = simplified(schema["properties"]["parameters"])
    assert found["max_new_tokens"] == "integer"
    assert found["stop_sequences"] == "array"
    assert found["exponential_decay_length_penalty"] == {
        "start_index": "integer",
        "decay_factor": "number",
    }
    assert found.keys() == set(SAMPLING_FIELDS)


def test_an_object_is_inlined_with_all_that_is_in_it():
    inner = Object("Inner", "", {"x": Text()})
    shape = Object("", "", {"outer": Object("Outer", "", {"inner": inner})})
    body = Document().request_body(shape, inline=("outer",))["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    outer = schema["properties"]["outer"]["allOf"][0]
    assert outer["properties"]["inner"]["allOf"][0]["properties"] == {"x": {"type": "string"}}
    assert references(schema) == []


@pytest.mark.parametrize(("verb", "path"), ROUTES)
def test_whatever_the_document_allows_is_answered_as_it_says(runtime, verb, path):
    """schemathesis makes requests from the document and holds the answers against it."""
    schema = schemathesis.openapi.from_url(f"{runtime.http_url}/openapi.json")

    @given(case=schema[path][verb.lower()].as_strategy())
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    check()
