from collections.abc import Callable

import httpx
import pytest
from fixtures.fake_api import Answer, FakeApi, events

from luthier.client import Client, JobState
from luthier.errors import (
    InvalidInputError,
    ModelNotFoundError,
    ServerUnreachableError,
    TrainingFailedError,
)

STATUS = "GET /management/trainings"
METRICS = "GET /management/trainings/metrics"
STREAM = "POST /api/v1/task/server-streaming-text-generation"

MakeClient = Callable[[dict[str, Answer | list[Answer]]], tuple[Client, FakeApi]]


@pytest.fixture
def make_client() -> MakeClient:
    def make(answers: dict[str, Answer | list[Answer]]) -> tuple[Client, FakeApi]:
        api = FakeApi(answers)
        return Client("http://test/", transport=api.transport), api

    return make


def status(state: str, **more: object) -> httpx.Response:
    return httpx.Response(200, json={"training_id": "t1", "state": state, **more})


def losses(*values: float) -> httpx.Response:
    lines = [{"name": "loss", "step": i, "value": v} for i, v in enumerate(values, start=1)]
    return httpx.Response(200, json={"metrics": lines})


def test_generate_gives_text_and_reason(make_client: MakeClient) -> None:
    answer = httpx.Response(200, json={"generated_text": "hi", "finish_reason": "EOS_TOKEN"})
    client, api = make_client({"POST /api/v1/task/text-generation": answer})
    result = client.generate("m", "hello", max_new_tokens=4)
    assert (result.text, result.finish_reason) == ("hi", "EOS_TOKEN")
    assert api.last_body["parameters"] == {"max_new_tokens": 4}


def test_stream_gives_every_chunk_in_order(make_client: MakeClient) -> None:
    answer = events(
        {"generated_text": "a"},
        {"generated_text": "b", "details": {"finish_reason": "MAX_TOKENS", "generated_tokens": 2}},
    )
    client, _ = make_client({STREAM: answer})
    chunks = list(client.stream("m", "x"))
    assert [chunk.text for chunk in chunks] == ["a", "b"]
    assert [chunk.finish_reason for chunk in chunks] == ["NOT_FINISHED", "MAX_TOKENS"]


def test_stream_that_breaks_with_an_error_event_raises_after_what_came(
    make_client: MakeClient,
) -> None:
    error = {"details": "broke", "code": 400, "error": "invalid_input"}
    client, _ = make_client({STREAM: events({"generated_text": "a"}, error, kind="error")})
    stream = client.stream("m", "x")
    assert next(stream).text == "a"
    with pytest.raises(InvalidInputError, match="broke"):
        next(stream)


def test_stream_refused_at_once_raises_the_servers_class(make_client: MakeClient) -> None:
    body = {"details": "Model 'm' not loaded", "code": 404, "error": "model_not_found"}
    client, _ = make_client({STREAM: httpx.Response(404, json=body)})
    with pytest.raises(ModelNotFoundError, match="'m' not loaded"):
        list(client.stream("m", "x"))


def test_wait_reports_each_metric_once_and_returns_the_final_status(
    make_client: MakeClient,
) -> None:
    client, _ = make_client(
        {
            STATUS: [status("QUEUED"), status("RUNNING"), status("COMPLETED")],
            METRICS: [losses(), losses(3.0, 2.0), losses(3.0, 2.0, 1.0)],
        }
    )
    seen: list[float] = []
    states: list[JobState] = []

    def on_progress(status: object, metrics: list) -> None:
        states.append(status.state)  # type: ignore[attr-defined]
        seen.extend(metric.value for metric in metrics)

    final = client.wait("t1", on_progress=on_progress, poll_seconds=0)
    assert final.state is JobState.COMPLETED
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.COMPLETED]
    assert seen == [3.0, 2.0, 1.0]


def test_wait_raises_when_the_training_failed(make_client: MakeClient) -> None:
    client, _ = make_client({STATUS: [status("RUNNING"), status("ERRORED", reasons=["no rows"])]})
    with pytest.raises(TrainingFailedError, match="no rows"):
        client.wait("t1", poll_seconds=0)


def test_wait_gives_up_after_its_time(make_client: MakeClient) -> None:
    client, _ = make_client({STATUS: status("RUNNING")})
    with pytest.raises(TimeoutError, match="still is RUNNING"):
        client.wait("t1", poll_seconds=0, timeout_seconds=0)


def test_train_prompt_sends_the_tuning_config(make_client: MakeClient) -> None:
    answer = httpx.Response(200, json={"training_id": "t1", "model_name": "tuned"})
    client, api = make_client({"POST /api/v1/TextGenerationTaskPeftPromptTuningTrain": answer})
    job = client.train_prompt(
        "tuned",
        base_model="base",
        train_data=[{"input": "a", "output": "b"}],
        tuning_config={"num_virtual_tokens": 4},
        num_epochs=1,
    )
    assert (job.training_id, job.model_name) == ("t1", "tuned")
    assert api.last_body["parameters"]["tuning_config"] == {"num_virtual_tokens": 4}


def test_train_full_uses_its_own_route(make_client: MakeClient) -> None:
    answer = httpx.Response(200, json={"training_id": "t1", "model_name": "tuned"})
    client, api = make_client({"POST /api/v1/TextGenerationTaskTextGenerationTrain": answer})
    client.train_full("tuned", base_model="b", train_data=[{"input": "a", "output": "b"}], lr=0.1)
    assert api.last_body["parameters"]["lr"] == 0.1


def test_train_lora_uses_its_own_route(make_client: MakeClient) -> None:
    answer = httpx.Response(200, json={"training_id": "t1", "model_name": "tuned"})
    client, api = make_client({"POST /api/v1/TextGenerationTaskLoraTuningTrain": answer})
    client.train_lora("tuned", base_model="b", train_data=[{"input": "a", "output": "b"}], rank=4)
    assert api.last_body["parameters"]["rank"] == 4


def test_a_head_is_trained_and_asked_by_routes_of_its_own(make_client: MakeClient) -> None:
    client, api = make_client(
        {
            "POST /api/v1/TextClassificationTaskHeadTuningTrain": httpx.Response(
                200, json={"training_id": "t1", "model_name": "sorter"}
            ),
            "POST /api/v1/task/text-classification": httpx.Response(
                200, json={"results": [{"label": "spam", "score": 1.0}]}
            ),
        }
    )
    rows = [{"text": "a", "labels": ["spam"]}]
    client.train_head("sorter", base_model="b", train_data=rows, use_lora=False)
    parameters = api.last_body["parameters"]
    assert parameters["train_stream"] == {"data_stream": {"data": rows}}
    assert parameters["use_lora"] is False
    assert client.classify("sorter", "win")[0].label == "spam"
    assert api.last_body == {"model_id": "sorter", "inputs": "win"}


def test_models_training_tokens_versions_and_health_are_read(make_client: MakeClient) -> None:
    client, _ = make_client(
        {
            "GET /info/models": httpx.Response(
                200, json={"models": [{"name": "m", "loaded": True, "size": 12}]}
            ),
            "GET /info/version": httpx.Response(200, json={"runtime_version": "0.1.0"}),
            "GET /health": httpx.Response(200, text="OK"),
            "POST /api/v1/task/tokenization": httpx.Response(200, json={"token_count": 3}),
            "DELETE /management/trainings": status("CANCELED"),
            "POST /management/trainings/resume": status("QUEUED"),
        }
    )
    assert client.models()[0].size_bytes == 12
    assert client.version()["runtime_version"] == "0.1.0"
    assert client.health() == "OK"
    assert client.tokenize("m", "a b c").token_count == 3
    assert client.cancel_training("t1").state is JobState.CANCELED
    assert client.resume_training("t1").state is JobState.QUEUED


def test_undeploy_names_the_model_in_the_query(make_client: MakeClient) -> None:
    client, api = make_client({"DELETE /management/models": httpx.Response(200, json={})})
    client.undeploy("a b&c")
    assert api.requests[-1].url.params["model_id"] == "a b&c"


def test_nobody_under_the_address_is_a_named_error() -> None:
    with (
        Client("http://127.0.0.1:9", timeout_seconds=2) as client,
        pytest.raises(ServerUnreachableError, match=r"no server answers at http://127\.0\.0\.1:9"),
    ):
        client.health()


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    with (
        Client("http://127.0.0.1:9", timeout_seconds=2) as client,
        pytest.raises(ServerUnreachableError, match="no server answers"),
    ):
        client.health()
