"""Bodies as clients send them: JSON with and without a type, forms, and nonsense."""

from __future__ import annotations

import json

import httpx
import pytest
from fastapi import FastAPI, Request

from luthier.runtime.http_server import problems
from luthier.runtime.http_server.bodies import THREAD_BYTES, decode_json, read_body
from luthier.runtime.http_server.problems import HttpError
from luthier.runtime.http_server.shapes import Bytes, Flag, Integer, ListOf, Number, Object, Text

PARAMETERS = Object(
    "P",
    "",
    {"count": Integer(0, 9), "ratio": Number(), "flag": Flag(), "stops": ListOf(Text())},
)
FILE = Object("File", "", {"filename": Text(), "data": Bytes()})
SHAPE = Object(
    "", "", {"inputs": Text(), "parameters": PARAMETERS, "files": ListOf(FILE)}, ("inputs",)
)


@pytest.fixture
async def client():
    app = FastAPI()
    app.state.max_body_bytes = 10 * 1024 * 1024
    problems.install(app)

    async def echo(request: Request):
        body = await read_body(request, SHAPE)
        for file in body.get("files", ()):
            file["data"] = file["data"].hex()
        return body

    app.add_api_route("/", echo, methods=["POST"])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


BODY = {"inputs": "é", "parameters": {"count": 3, "stops": ["a"]}}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8; x=y",
        "",
        None,
    ],
)
async def test_json_is_read_whatever_the_type_says_beside(client, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post("/", content=json.dumps(BODY), headers=headers)
    assert (response.status_code, response.json()) == (200, BODY)


async def test_a_large_body_is_read_too(client):
    body = {"inputs": "x" * (THREAD_BYTES + 1)}
    assert (await client.post("/", json=body)).json() == body


async def test_a_form_is_read_by_dotted_keys(client):
    fields = {
        "inputs": "7",
        "parameters.count": "3",
        "parameters.ratio": "0.5",
        "parameters.flag": "true",
        "parameters.stops": ["a", "b"],
    }
    files = [("files", ("deep/a.bin", b"\x00\xff")), ("files", ("b", b""))]
    response = await client.post("/", data=fields, files=files)
    assert response.json() == {
        "inputs": "7",
        "parameters": {"count": 3, "ratio": 0.5, "flag": True, "stops": ["a", "b"]},
        "files": [{"filename": "deep/a.bin", "data": "00ff"}, {"filename": "b", "data": ""}],
    }


async def test_a_part_of_a_form_may_be_json(client):
    files = {"inputs": (None, "x"), "parameters": (None, '{"count": 3}')}
    assert (await client.post("/", files=files)).json() == {
        "inputs": "x",
        "parameters": {"count": 3},
    }
    files = {"inputs": ("i.txt", b"from a file"), "parameters": ("p.json", b'{"count": 3}')}
    assert (await client.post("/", files=files)).json()["inputs"] == "from a file"


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": "x", "parameters.count": "many"},
        {"inputs": "x", "parameters.nope": "1"},
        {"inputs": "x", "nope.nope": "1"},
        {"inputs": "x", "inputs.deep": "1"},
        {"inputs": "x", "parameters": "{"},
        {"inputs": "x", "parameters": "[]"},
        {"parameters.count": "1"},
    ],
)
async def test_a_wrong_form_is_refused(client, fields):
    response = await client.post("/", files={key: (None, value) for key, value in fields.items()})
    assert response.status_code == 422, response.text
    assert response.json()["additional_info"]


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=é"],
)
async def test_a_form_without_a_boundary_is_refused(client, content_type):
    headers = {"Content-Type": content_type.encode("latin-1")}
    response = await client.post("/", content=b"--x\r\n\r\n", headers=headers)
    assert response.status_code == 422, response.text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
async def test_another_type_is_refused(client, content_type):
    headers = {"Content-Type": content_type}
    response = await client.post("/", content="{}", headers=headers)
    assert response.status_code == 415
    assert response.json()["error"] == "unsupported_media_type"


async def test_a_compressed_body_is_refused(client):
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert (await client.post("/", content=b"\x1f\x8b", headers=headers)).status_code == 415


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"inputs": NaN}',
        b'{"inputs": "x", "parameters": {"ratio": Infinity}}',
        b'{"inputs": "x", "parameters": {"ratio": 1e309}}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "\xff"}',
        b'{"inputs": ' + b"[" * 100_000,
        b'{"inputs": "x", "parameters": {"count": ' + b"9" * 5000 + b"}}",
    ],
)
def test_json_that_is_none_or_of_another_form_is_refused(raw):
    with pytest.raises(HttpError) as caught:
        decode_json(raw, SHAPE)
    assert caught.value.status == 422
    assert caught.value.additional_info[0]["loc"][0] == "body"
    assert len(str(caught.value)) < 300


def test_nothing_of_a_body_is_lost():
    assert decode_json(json.dumps(BODY).encode(), SHAPE) == BODY
