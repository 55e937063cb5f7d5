"""The routes of the tasks, as a client would use them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest
from fixtures.echo_runtime import RunningRuntime, sse_messages, wait_for

from luthier.data_model.caller import Caller

GENERATE = "/api/v1/task/text-generation"
STREAM = "/api/v1/task/server-streaming-text-generation"
MANY = "/api/v1/task/text-generations"


@pytest.fixture(scope="module")
def http(runtime: RunningRuntime):
    with runtime.http as client:
        yield client


def body(text: str = "a b", model_id: str = "echo", **parameters):
    return {"model_id": model_id, "inputs": text, "parameters": parameters}


def test_text_is_generated(http):
    response = http.post(GENERATE, json=body("a b c"))
    assert response.json()["generated_text"] == "cba"
    assert response.json()["finish_reason"] == "EOS_TOKEN"
    assert response.headers["content-type"] == "application/json"


def test_every_parameter_reaches_the_model(http, runtime):
    penalty = {"start_index": 2, "decay_factor": 1.5}
    given = {
        "max_new_tokens": 7,
        "top_p": 1,
        "stop_sequences": ["a"],
        "seed": 2**64 - 1,
        "preserve_input_text": False,
        "temperature": None,
        "exponential_decay_length_penalty": penalty,
    }
    assert http.post(GENERATE, json=body(**given)).status_code == 200
    _, params = runtime.log.calls[-1]
    assert (params.max_new_tokens, params.top_p, params.seed) == (7, 1.0, 2**64 - 1)
    assert (params.stop_sequences, params.preserve_input_text) == (("a",), False)
    assert params.exponential_decay_length_penalty == (2, 1.5)
    assert params.temperature is None


def test_beams_and_other_appended_parameters_reach_the_model(http, runtime):
    given = {"min_p": 0.1, "num_beams": 3, "length_penalty": -1, "early_stopping": True}
    assert http.post(GENERATE, json=body(no_repeat_ngram_size=2, **given)).status_code == 200
    _, params = runtime.log.calls[-1]
    assert {name: getattr(params, name) for name in given} == given
    assert params.no_repeat_ngram_size == 2


def test_several_answers_come_in_one_body_with_a_seed_each(http):
    request = {**body("a b", decoding_method="SAMPLING", seed=7), "n": 3}
    response = http.post(MANY, json=request)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["generated_text"] for result in results] == ["ba"] * 3
    assert [result["seed"] for result in results] == [7, 8, 9]


@pytest.mark.parametrize(
    ("n", "method", "message"),
    [
        (17, "SAMPLING", "'n' must be at most 16, got 17"),
        (0, "SAMPLING", "'n' must be at least 1, got 0"),
        (2, "GREEDY", "'n' is 2, but GREEDY gives one answer only"),
        ("two", "SAMPLING", "Input should be a valid integer"),
        (None, "SAMPLING", "Field required"),
    ],
)
def test_a_wrong_number_of_answers_is_refused(http, n, method, message):
    response = http.post(MANY, json={**body(decoding_method=method), "n": n})
    assert response.status_code in (400, 422)
    assert message in response.text


@pytest.mark.parametrize("route", [GENERATE, STREAM, f"{GENERATE}/job"])
def test_headers_say_on_whose_behalf_the_model_is_asked(http, runtime, route):
    headers = {"X-Luthier-Tenant": "team-a", "X-Luthier-Priority": "-2"}
    num_before = len(runtime.log.callers)
    assert http.post(route, json=body("a"), headers=headers).status_code == 200
    wait_for(lambda: len(runtime.log.callers) > num_before)
    assert runtime.log.callers[-1] == Caller("team-a", -2)
    http.post(GENERATE, json=body("a"))
    assert runtime.log.callers[-1] == Caller()


def test_a_priority_that_is_no_number_is_refused(http):
    response = http.post(GENERATE, json=body("a"), headers={"X-Luthier-Priority": "high"})
    assert response.status_code == 400
    assert "'x-luthier-priority' must be int, got 'high'" in response.text


def test_empty_text_is_text(http, runtime):
    assert http.post(GENERATE, json=body("")).status_code == 200
    assert runtime.log.calls[-1][0] == ""
    assert http.post(STREAM, json=body("")).status_code == 200


def test_a_form_works_like_json(http):
    parts = {"model_id": "echo", "inputs": "a b", "parameters.max_new_tokens": "4"}
    response = http.post(GENERATE, files={key: (None, value) for key, value in parts.items()})
    assert response.json()["generated_text"] == "ba"


def test_a_stream_is_read_as_caikit_nlps_clients_read_it(http):
    response = http.post(STREAM, json=body("a b"))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "event:" not in response.text
    assert [message["generated_text"] for message in sse_messages(response.text)] == ["b", "a", ""]


def test_tokens_are_counted(http):
    response = http.post("/api/v1/task/tokenization", json={"model_id": "echo", "inputs": "a b"})
    assert response.json() == {"results": None, "token_count": 2}


WRONG = [
    ({"inputs": "x"}, 400, "invalid_input", "Please provide model_id in payload"),
    ({"model_id": "echo"}, 422, "invalid_request", "inputs: Field required"),
    ({"model_id": "echo", "inputs": 1}, 422, "invalid_request", "valid string"),
    ({**body(), "extra": 1}, 422, "invalid_request", "Extra inputs are not permitted"),
    (body(nope=1), 422, "invalid_request", "parameters.nope"),
    (body(max_new_tokens="3"), 422, "invalid_request", "valid integer"),
    (body(max_new_tokens=True), 422, "invalid_request", "valid integer"),
    (body(seed=-1), 422, "invalid_request", "between 0"),
    (body(model_id="nope"), 404, "model_not_found", "Model 'nope' not loaded"),
    (body(model_id="../echo"), 400, "name_not_allowed", "'../echo'"),
    (body(model_id="x\0y"), 400, "name_not_allowed", "not allowed"),
    (body(model_id="x" * 10_000), 400, "name_not_allowed", "10000 characters"),
    (
        body(max_new_tokens=1, min_new_tokens=2),
        400,
        "invalid_input",
        "Max new tokens needs to be bigger than min new tokens",
    ),
    (body(decoding_method="BEAM"), 400, "invalid_input", "not in valid decoding methods"),
    (body(max_new_tokens=2**62), 400, "invalid_input", "at most"),
    (body(top_p=-1), 400, "invalid_input", "top_p"),
    (body("crash now"), 500, "internal", "internal error"),
]


@pytest.mark.parametrize(("given", "status", "word", "message"), WRONG)
@pytest.mark.parametrize("route", [GENERATE, STREAM])
def test_a_wrong_request_is_refused(http, route, given, status, word, message):
    response = http.post(route, json=given)
    error = response.json()
    assert (response.status_code, error["code"], error["error"]) == (status, status, word)
    assert message in error["details"] and error["id"]
    assert ("additional_info" in error) == (status == 422)
    assert "passwd" not in response.text


def test_the_error_of_a_stream_can_be_read_with_six_characters_cut_off(http):
    response = http.post(STREAM, json=body(model_id="nope"))
    [error] = sse_messages(response.text)
    assert response.status_code == error["code"] == 404
    assert "'nope'" in error["details"]


def test_a_row_that_fails_ends_its_stream_with_a_message(http):
    response = http.post(STREAM, json=body("broken a"))
    assert response.status_code in (200, 500)
    response = http.post(STREAM, json=body("broken a b c"))
    last = sse_messages(response.text)[-1]
    assert (last["code"], last["error"], last["details"]) == (
        500,
        "engine_failed",
        "the row failed",
    )


def abort_stream(http_url: str) -> None:
    """Ask for a stream, read its first bytes and be gone."""
    address = urlsplit(http_url)
    content = json.dumps(body("slow"))
    connection = HTTPConnection(address.hostname, address.port, timeout=30)
    connection.request("POST", STREAM, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.read(10) == b'data: {"ge'
    response.close()
    connection.close()


def test_a_hundred_and_fifty_aborted_streams_leave_both_protocols_answering(http, runtime):
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(abort_stream, [runtime.http_url] * 150))
    runtime.wait_until_idle()
    assert http.post(GENERATE, json=body("a b")).json()["generated_text"] == "ba"
    with runtime.channel() as channel:
        call = channel.unary_unary("/caikit.runtime.Nlp.NlpService/TextGenerationTaskPredict")
        assert call(b"\n\x03a b", metadata=(("mm-model-id", "echo"),), timeout=60)
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("asyncio_") for name in names) <= 40


def test_a_unary_client_that_goes_away_frees_its_row(runtime):
    with httpx.Client(base_url=runtime.http_url) as client, pytest.raises(httpx.ReadTimeout):
        client.post(GENERATE, json=body("slow"), timeout=0.3)
    runtime.wait_until_idle()


def test_a_slow_load_does_not_keep_others_waiting(http, runtime):
    runtime.add_model("cold")
    runtime.log.load_seconds = 1.0
    answers: list[int] = []
    with runtime.http as client:
        loading = threading.Thread(
            target=lambda: answers.append(
                client.post(STREAM, json=body(model_id="cold")).status_code
            )
        )
        loading.start()
        wait_for(lambda: "cold" in runtime.log.loaded)
        started = time.monotonic()
        assert http.get("/health").text == "OK"
        assert http.post(GENERATE, json=body()).status_code == 200
        assert time.monotonic() - started < 0.7
        loading.join()
    runtime.log.load_seconds = 0.0
    assert answers == [200]


def test_a_job_runs_in_the_background(http):
    job_id = http.post(f"{GENERATE}/job", json=body("a b")).json()["prediction_id"]
    query = {"prediction_id": job_id}
    wait_for(lambda: http.get(f"{GENERATE}/job", params=query).json()["state"] == "COMPLETED")
    result = http.get(f"{GENERATE}/job/results", params=query)
    assert result.json()["generated_text"] == "ba"


def test_a_job_can_be_cancelled(http, runtime):
    job_id = http.post(f"{GENERATE}/job", json=body("slow")).json()["prediction_id"]
    query = {"prediction_id": job_id}
    assert http.get(f"{GENERATE}/job/results", params=query).status_code == 409
    assert http.delete(f"{GENERATE}/job", params=query).json()["state"] == "CANCELED"
    runtime.wait_until_idle()
    assert http.get(f"{GENERATE}/job", params={"prediction_id": "nobody"}).status_code == 404


def test_a_job_that_fails_says_why(http):
    job_id = http.post(f"{GENERATE}/job", json=body(model_id="nope")).json()["prediction_id"]
    query = {"prediction_id": job_id}
    wait_for(lambda: http.get(f"{GENERATE}/job", params=query).json()["state"] == "ERRORED")
    assert "'nope'" in http.get(f"{GENERATE}/job", params=query).json()["reasons"][0]
    assert http.get(f"{GENERATE}/job/results", params=query).status_code == 404


def test_a_text_is_classified(http, runtime):
    runtime.add_model("sorter")
    classify = "/api/v1/task/text-classification"
    response = http.post(classify, json={"model_id": "sorter", "inputs": "ham spam"})
    assert response.json() == {
        "results": [{"label": "spam", "score": 1 / 2}, {"label": "ham", "score": 1 / 3}]
    }
    refused = http.post(classify, json={"model_id": "sorter", "inputs": "a", "parameters": {}})
    assert refused.status_code == 422, "a classification has no parameters"
    refused = http.post(classify, json={"model_id": "echo", "inputs": "a"})
    assert (refused.status_code, refused.json()["error"]) == (501, "not_supported")
    refused = http.post(GENERATE, json=body("a", model_id="sorter"))
    assert "'sorter' (Sorter) writes no text" in refused.json()["details"]
