"""80 requests at 8 threads over both wires: every answer is the one given alone.

And whatever streams are broken off meanwhile, both protocols go on answering.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures.echo_runtime import sse_messages
from fixtures.server_process import ServerProcess
from google.protobuf.message_factory import GetMessageClass

from luthier.config import load_config
from luthier.modules import PeftPromptTuning, configure
from luthier.modules.service_package import service_packages

PROMPTS = ["one two 0", "Tweet text : 1", "a 2", "日本 3", "x y z 4"]
MODELS = ("grpc-prompt-causal", "second-causal", "http-prompt-seq2seq")
MAX_NEW_TOKENS = 16


@pytest.fixture(scope="module")
def server(runtime_server: tuple[ServerProcess, Any], tiny_base_models_dir: Path) -> ServerProcess:
    """The server, with a second prompt on the causal base put into its folder."""
    server, _ = runtime_server
    configure(load_config({"BASE_MODELS_DIR": str(tiny_base_models_dir)}))
    tuned = PeftPromptTuning.train(
        "tiny-causal",
        [{"input": "a", "output": "b"}],
        {"num_virtual_tokens": 6},
        num_epochs=1,
    )
    tuned.save(server.models_dir / "second-causal")
    tuned.release()
    configure(load_config({}))
    return server


def ask_http(server: ServerProcess, model_id: str, text: str) -> str:
    return _post(server, "text-generation", model_id, text).json()["generated_text"]


def ask_sse(server: ServerProcess, model_id: str, text: str) -> str:
    body = _post(server, "server-streaming-text-generation", model_id, text).text
    return "".join(event["generated_text"] for event in sse_messages(body))


def _post(server: ServerProcess, route: str, model_id: str, text: str) -> Any:
    parameters = {"max_new_tokens": MAX_NEW_TOKENS}
    body = {"model_id": model_id, "inputs": text, "parameters": parameters}
    with server.http as client:
        response = client.post(f"/api/v1/task/{route}", json=body)
    assert response.status_code == 200, response.text
    return response


def ask_grpc(server: ServerProcess, model_id: str, text: str) -> str:
    package = service_packages().inference
    method = package.descriptor.methods_by_name["TextGenerationTaskPredict"]
    request = GetMessageClass(method.input_type)(text=text, max_new_tokens=MAX_NEW_TOKENS)
    with server.channel() as channel:
        stub = package.stub_class(channel)
        metadata = (("mm-model-id", model_id),)
        answer: str = stub.TextGenerationTaskPredict(request, metadata=metadata).generated_text
        return answer


def ask_grpc_stream(server: ServerProcess, model_id: str, text: str) -> str:
    package = service_packages().inference
    method = package.descriptor.methods_by_name["ServerStreamingTextGenerationTaskPredict"]
    request = GetMessageClass(method.input_type)(text=text, max_new_tokens=MAX_NEW_TOKENS)
    with server.channel() as channel:
        rpc = package.stub_class(channel).ServerStreamingTextGenerationTaskPredict
        answers = rpc(request, metadata=(("mm-model-id", model_id),))
        return "".join(answer.generated_text for answer in answers)


WAYS = {"http": ask_http, "sse": ask_sse, "grpc": ask_grpc, "grpc stream": ask_grpc_stream}


@pytest.fixture(scope="module")
def alone(server: ServerProcess) -> dict[tuple[str, str], str]:
    """What each model answers to each prompt when nobody else asks."""
    return {
        (model, prompt): ask_http(server, model, prompt)
        for model, prompt in itertools.product(MODELS, PROMPTS)
    }


def test_the_answers_differ_from_model_to_model_and_prompt_to_prompt(alone):
    assert len(set(alone.values())) > len(alone) * 0.8


def test_eighty_requests_at_once_are_answered_as_if_alone(server, alone):
    combinations = itertools.product(PROMPTS, MODELS, WAYS)
    work = list(itertools.islice(itertools.cycle(combinations), 80))

    def ask(job: tuple[str, str, str]) -> tuple[tuple[str, str, str], str]:
        prompt, model, way = job
        return job, WAYS[way](server, model, prompt)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, work))
    wrong = [(job, text) for job, text in answers if text != alone[job[1], job[0]]]
    assert wrong == []
    assert {job[2] for job, _ in answers} == set(WAYS)


def break_off(server: ServerProcess) -> None:
    """Ask for a long stream, read a little and be gone."""
    parameters = {"max_new_tokens": 900, "min_new_tokens": 900}
    body = {"model_id": "grpc-prompt-causal", "inputs": "hi", "parameters": parameters}
    route = "/api/v1/task/server-streaming-text-generation"
    with server.http as client, client.stream("POST", route, json=body) as response:
        next(response.iter_bytes())


def test_streams_that_are_broken_off_leave_the_engine_free(server, alone):
    """The 150 of the door's own test run on an echo; here the rows are an engine's."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: break_off(server), range(40)))
    assert (
        ask_http(server, "grpc-prompt-causal", PROMPTS[0])
        == alone["grpc-prompt-causal", PROMPTS[0]]
    )
    assert (
        ask_grpc(server, "http-prompt-seq2seq", PROMPTS[1])
        == alone["http-prompt-seq2seq", PROMPTS[1]]
    )


def test_a_poisoned_request_ends_alone(server, alone):
    """Each of these is refused while others run; none of the others notices."""
    poison = [
        {"repetition_penalty": 1e300},
        {"temperature": 1e-300, "decoding_method": "SAMPLING"},
        {"top_k": 2**62, "decoding_method": "SAMPLING"},
        {"stop_sequences": ["x" * 10_000]},
        {"truncate_input_tokens": 2**62},
    ]

    def ask_badly(parameters: dict[str, Any]) -> int:
        body = {"model_id": "grpc-prompt-causal", "inputs": "hi", "parameters": parameters}
        with server.http as client:
            response = client.post("/api/v1/task/text-generation", content=json.dumps(body))
            return response.status_code

    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(ask_badly, each) for each in poison]
        good = [pool.submit(ask_http, server, "second-causal", prompt) for prompt in PROMPTS]
        assert {future.result() for future in bad} <= {200, 400}
        assert [future.result() for future in good] == [
            alone["second-causal", prompt] for prompt in PROMPTS
        ]
