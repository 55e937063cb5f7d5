"""What both clients do with httpx: write a request, read a response, name what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from luthier.client import answers
from luthier.client.call import Call, encode
from luthier.client.error_mapping import error_from_body, error_from_response
from luthier.client.results import GeneratedChunk
from luthier.client.sse import ServerSentEvent
from luthier.errors import LuthierError, ServerUnreachableError

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 300.0

Answer = TypeVar("Answer")


def http_options(
    url: str, timeout_seconds: float, *, tenant: str = "", priority: int = 0
) -> dict[str, Any]:
    """Arguments of ``httpx.Client`` and ``httpx.AsyncClient`` alike.

    Proxies of the environment are ignored: a server on loopback must not be asked through one.
    """
    return {
        "base_url": url.rstrip("/"),
        "timeout": httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        "trust_env": False,
        "headers": _caller_headers(tenant, priority),
    }


def _caller_headers(tenant: str, priority: int) -> dict[str, str]:
    headers = {"x-luthier-tenant": tenant, "x-luthier-priority": str(priority or "")}
    return {name: value for name, value in headers.items() if value}


def request_of(call: Call[Any]) -> dict[str, Any]:
    """Arguments of httpx's ``request`` and ``stream``."""
    request: dict[str, Any] = {"method": call.method, "url": call.path, "params": call.query}
    if call.body is not None:
        request["content"] = encode(call.body)
        request["headers"] = {"Content-Type": "application/json"}
    if call.files:
        request["files"] = list(call.files)
        request["data"] = dict(call.fields or {})
    return request


def read_answer(call: Call[Answer], response: httpx.Response) -> Answer:
    """The answer in a response.

    Raises:
        LuthierError: The class that the server raised, if the response is an error.
    """
    if response.is_error:
        raise error_from_response(response)
    if call.is_text:
        return call.read(response.text)
    if not response.content:
        return call.read({})
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LuthierError(f"{call.path} answered something that is no JSON") from error
    return call.read(body)


def chunk_of(event: ServerSentEvent) -> GeneratedChunk:
    """The message in an event.

    Raises:
        LuthierError: The class that ended the stream on the server, if the event is an error.
    """
    try:
        body = answers.mapping(json.loads(event.data))
    except json.JSONDecodeError as error:
        raise LuthierError("the server sent an event that is no JSON") from error
    # Our servers send an error as a message like any other; caikit's call the event "error".
    status = body.get("code")
    if event.event == "error" or isinstance(status, int):
        raise error_from_body(body, status=status if isinstance(status, int) else 500)
    return answers.generated_chunk(body)


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Turn what httpx raises into ``ServerUnreachableError``."""
    try:
        yield
    except httpx.ConnectError as error:
        raise ServerUnreachableError(f"no server answers at {url}") from error
    except httpx.TimeoutException as error:
        raise ServerUnreachableError(f"{url} did not answer in time") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerUnreachableError(f"the connection to {url} broke: {error}") from error
