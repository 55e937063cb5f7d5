import inspect

import httpx
import pytest
from fixtures.fake_api import Answer, FakeApi, events

from luthier.client import AsyncClient, Client, JobState
from luthier.errors import ModelNotFoundError, ServerUnreachableError


def client_of(answers: dict[str, Answer | list[Answer]]) -> AsyncClient:
    return AsyncClient("http://test", transport=FakeApi(answers).transport)


def test_both_clients_offer_the_same_methods_with_the_same_parameters() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert public(AsyncClient) == public(Client)


async def test_generate_and_stream_give_the_same_text() -> None:
    async with client_of(
        {
            "POST /api/v1/task/text-generation": httpx.Response(
                200, json={"generated_text": "ab", "finish_reason": "EOS_TOKEN"}
            ),
            "POST /api/v1/task/server-streaming-text-generation": events(
                {"generated_text": "a"}, {"generated_text": "b"}
            ),
        }
    ) as client:
        whole = await client.generate("m", "x")
        pieces = [chunk.text async for chunk in client.stream("m", "x")]
    assert "".join(pieces) == whole.text == "ab"


async def test_error_of_the_server_is_raised() -> None:
    body = {"details": "Model 'm' not loaded", "error": "model_not_found"}
    route = "POST /api/v1/task/server-streaming-text-generation"
    async with client_of({route: httpx.Response(404, json=body)}) as client:
        with pytest.raises(ModelNotFoundError):
            [chunk async for chunk in client.stream("m", "x")]


async def test_wait_ends_with_the_final_status() -> None:
    def state(word: str) -> httpx.Response:
        return httpx.Response(200, json={"training_id": "t", "state": word})

    seen: list[float] = []
    async with client_of(
        {
            "GET /management/trainings": [state("RUNNING"), state("COMPLETED")],
            "GET /management/trainings/metrics": httpx.Response(
                200, json={"metrics": [{"name": "loss", "step": 1, "value": 0.5}]}
            ),
        }
    ) as client:
        final = await client.wait(
            "t",
            poll_seconds=0,
            on_progress=lambda status, metrics: seen.extend(m.value for m in metrics),
        )
    assert final.state is JobState.COMPLETED
    assert seen == [0.5]


async def test_nobody_under_the_address_is_a_named_error() -> None:
    async with AsyncClient("http://127.0.0.1:9", timeout_seconds=2) as client:
        with pytest.raises(ServerUnreachableError):
            await client.health()
