"""A body that is too large is refused, whether it says so or not."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI, Request

from luthier.runtime.http_server import problems
from luthier.runtime.http_server.body_limit import BodyLimit


@pytest.fixture
async def client():
    app = FastAPI()

    async def count(request: Request):
        return len(await request.body())

    app.add_api_route("/", problems.guarded(count), methods=["POST"], response_model=None)
    app.add_middleware(BodyLimit, max_body_bytes=100)
    problems.install(app)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def test_a_body_at_the_limit_passes(client):
    assert (await client.post("/", content=b"x" * 100)).json() == 100


async def test_a_declared_length_beyond_the_limit_is_refused(client):
    response = await client.post("/", content=b"x" * 101)
    assert response.status_code == 413
    assert response.json()["error"] == "body_too_large"


async def test_a_body_that_never_ends_is_refused_when_the_limit_is_reached(client):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 10
            yield b"x" * 10

    response = await client.post("/", content=endless())
    assert response.status_code == 413
    assert sent <= 200


async def test_a_length_that_is_no_number_is_not_trusted(client):
    headers = {"Content-Length": "many"}
    assert (await client.post("/", content=b"x" * 101, headers=headers)).status_code == 413
