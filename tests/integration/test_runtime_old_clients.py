"""A client like caikit-nlp-client 0.0.8, written from its description, against the real server.

It finds the gRPC messages by reflection (v1alpha) and the HTTP parameters in openapi.json, sets
parameters with ``setattr``, cuts six characters off every line of a stream, and makes an error of
whatever has ``details``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from fixtures.server_process import ServerProcess
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


class OldHttpClient:
    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def get_text_generation_parameters(self) -> dict[str, Any]:
        document = self._client.get("/openapi.json").json()
        post = document["paths"]["/api/v1/task/text-generation"]["post"]
        schema = post["requestBody"]["content"]["application/json"]["schema"]
        return self._flatten(schema["properties"]["parameters"])

    def generate_text(self, model_id: str, text: str, **parameters: Any) -> str:
        body = self._body(model_id, text, parameters)
        response = self._client.post("/api/v1/task/text-generation", json=body)
        if response.status_code == 200:
            return response.json()["generated_text"]
        if response.status_code < 500:
            raise RuntimeError(response.json()["details"])
        raise RuntimeError(f"{response.status_code}: Server error")

    def generate_text_stream(self, model_id: str, text: str, **parameters: Any) -> Iterator[str]:
        body = self._body(model_id, text, parameters)
        route = "/api/v1/task/server-streaming-text-generation"
        with self._client.stream("POST", route, json=body) as response:
            # The status is not looked at: the peer always answers 200 here.
            lines: list[str] = []
            for line in [*response.iter_lines(), ""]:
                if line:
                    lines.append(line[6:])
                elif lines:
                    message = json.loads("".join(lines))
                    lines.clear()
                    if "details" in message and "code" in message:
                        raise RuntimeError(f"Exception iterating responses: {message['details']}")
                    yield message["generated_text"]

    def _flatten(self, schema: dict[str, Any]) -> dict[str, Any]:
        [[_, parts]] = schema.items()
        return {
            name: self._flatten(each) if "allOf" in each else each["type"]
            for name, each in parts[0]["properties"].items()
        }

    def _body(self, model_id: str, text: str, parameters: dict[str, Any]) -> dict[str, Any]:
        body = {"model_id": model_id, "inputs": text}
        return body | {"parameters": parameters} if parameters else body


class OldGrpcClient:
    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pool = descriptor_pool.DescriptorPool()
        self._reflection = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        self._request = self._message("caikit.runtime.Nlp.TextGenerationTaskRequest")
        self._stream_request = self._message(
            "caikit.runtime.Nlp.ServerStreamingTextGenerationTaskRequest"
        )
        self._result = self._message("caikit_data_model.nlp.GeneratedTextResult")

    def close(self) -> None:
        self._channel.close()

    def get_text_generation_parameters(self) -> list[str]:
        return [field.name for field in self._request.DESCRIPTOR.fields if field.name != "text"]

    def generate_text(self, model_id: str, text: str, **parameters: Any) -> str:
        call = self._call(self._channel.unary_unary, "TextGenerationTaskPredict", self._request)
        request = self._filled(self._request, text, parameters)
        return call(request, metadata=[("mm-model-id", model_id)]).generated_text

    def generate_text_stream(self, model_id: str, text: str, **parameters: Any) -> Iterator[str]:
        rpc = "ServerStreamingTextGenerationTaskPredict"
        call = self._call(self._channel.unary_stream, rpc, self._stream_request)
        request = self._filled(self._stream_request, text, parameters)
        # The items of a stream are read with the class of the unary result: field 1 is the text.
        for item in call(request, metadata=[("mm-model-id", model_id)]):
            yield item.generated_text

    def _filled(self, kind: Any, text: str, parameters: dict[str, Any]) -> Any:
        request = kind(text=text)
        for name, value in parameters.items():
            setattr(request, name, value)
        return request

    def _call(self, make: Any, rpc: str, kind: Any) -> Any:
        return make(
            f"/caikit.runtime.Nlp.NlpService/{rpc}",
            request_serializer=kind.SerializeToString,
            response_deserializer=self._result.FromString,
        )

    def _message(self, name: str) -> Any:
        self._fetch(file_containing_symbol=name)
        return GetMessageClass(self._pool.FindMessageTypeByName(name))

    def _fetch(self, **question: str) -> None:
        asked = reflection_pb2.ServerReflectionRequest(**question)
        [answer] = self._reflection.ServerReflectionInfo(iter([asked]))
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            for needed in file.dependency:
                try:
                    self._pool.FindFileByName(needed)
                except KeyError:
                    self._fetch(file_by_filename=needed)
            self._pool.Add(file)


@pytest.fixture(scope="module")
def clients(runtime_server: tuple[ServerProcess, Any]) -> Iterator[dict[str, Any]]:
    server, _ = runtime_server
    found = {"http": OldHttpClient(server.http_url), "grpc": OldGrpcClient(server.grpc_address)}
    yield found
    for client in found.values():
        client.close()


TUNED = "grpc-prompt-causal"
BOTH = pytest.mark.parametrize("wire", ["http", "grpc"])


@BOTH
def test_the_parameters_are_told(clients, wire):
    found = clients[wire].get_text_generation_parameters()
    assert {"max_new_tokens", "seed", "stop_sequences", "include_stop_sequence"} <= set(found)
    assert len(found) == 24


@BOTH
def test_a_stream_joined_is_the_text_and_comes_in_pieces(clients, wire):
    client = clients[wire]
    text = client.generate_text(TUNED, "hello", max_new_tokens=10)
    pieces = list(client.generate_text_stream(TUNED, "hello", max_new_tokens=10))
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert all(isinstance(piece, str) for piece in pieces)


def test_both_wires_give_the_same_text(clients):
    texts = {each.generate_text(TUNED, "hello", max_new_tokens=10) for each in clients.values()}
    assert len(texts) == 1


@BOTH
def test_sampling_with_a_seed_can_be_repeated(clients, wire):
    given = {"decoding_method": "SAMPLING", "seed": 7, "temperature": 1.5, "max_new_tokens": 8}
    texts = {clients[wire].generate_text(TUNED, "hello", **given) for _ in range(3)}
    assert len(texts) == 1


def test_one_stop_sequence_is_enough(clients):
    whole = clients["http"].generate_text(
        TUNED, "hello", max_new_tokens=10, preserve_input_text=False
    )
    stop = whole[3:5]
    stopped = clients["http"].generate_text(
        TUNED, "hello", max_new_tokens=10, preserve_input_text=False, stop_sequences=[stop]
    )
    assert stopped == whole[: whole.index(stop) + len(stop)]


@BOTH
@pytest.mark.parametrize("call", ["generate_text", "generate_text_stream"])
@pytest.mark.parametrize(
    ("model_id", "parameters", "message"),
    [
        ("nope", {}, "nope"),
        (
            TUNED,
            {"max_new_tokens": 1, "min_new_tokens": 5},
            "Max new tokens needs to be bigger than min new tokens",
        ),
        (TUNED, {"decoding_method": "BEAM"}, "not in valid decoding methods"),
    ],
)
def test_errors_have_the_texts_that_clients_look_for(
    clients, wire, call, model_id, parameters, message
):
    with pytest.raises((RuntimeError, grpc.RpcError), match=message):
        answer = getattr(clients[wire], call)(model_id, "hello", **parameters)
        if call == "generate_text_stream":
            list(answer)
