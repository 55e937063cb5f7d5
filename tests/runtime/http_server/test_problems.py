"""Every error of HTTP has the same body."""

from __future__ import annotations

import json

import httpx
import pytest
from fastapi import FastAPI, Query
from starlette.requests import ClientDisconnect

from luthier.errors import CapacityError, ModelNotFoundError
from luthier.runtime.http_server.problems import (
    HttpError,
    error_response,
    guarded,
    install,
    invalid_body,
)


def body_of(error: Exception) -> dict:
    return json.loads(error_response(error).body)


def test_an_error_of_ours_has_its_status_and_word():
    response = error_response(ModelNotFoundError("Model 'x' not loaded"))
    assert response.status_code == 404
    body = json.loads(response.body)
    assert (body["code"], body["error"]) == (404, "model_not_found")
    assert body["details"] == "Model 'x' not loaded" and len(body["id"]) == 32


def test_a_full_queue_says_when_to_come_back():
    response = error_response(CapacityError("full", retry_after_seconds=9))
    assert (response.status_code, response.headers["retry-after"]) == (429, "9")


def test_a_foreign_error_keeps_its_message_inside():
    body = body_of(RuntimeError("secret"))
    assert body["code"] == 500 and "secret" not in body["details"]


def test_a_wrong_body_says_where_and_how_often():
    found = [{"type": "t", "loc": ["body", "a", 0], "msg": "Input should be x"}] * 3
    body = body_of(invalid_body(found))
    assert body["details"] == "body.a.0: Input should be x (and 2 more)"
    assert body["additional_info"] == found


def test_white_space_before_an_error_leaves_it_json():
    raw = error_response(HttpError(413, "body_too_large", "x"), prefix=b"      ").body
    assert raw.startswith(b"      {") and json.loads(raw)["code"] == 413


@pytest.fixture
async def client():
    app = FastAPI()

    async def numbers(number: int = Query()):
        raise ClientDisconnect

    app.add_api_route("/numbers", guarded(numbers), methods=["GET"], response_model=None)
    install(app)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/numbers", 405),
        ("GET", "/numbers", 422),
        ("GET", "/numbers?number=x", 422),
    ],
)
async def test_errors_of_the_framework_look_like_ours(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    body = response.json()
    assert body["code"] == status
    assert {"details", "code", "id", "error"} <= body.keys()


async def test_a_client_that_is_gone_is_no_error_of_ours(client):
    assert (await client.get("/numbers?number=1")).status_code == 499
