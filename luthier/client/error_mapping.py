"""From an error on the wire back to the class that was raised on the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from luthier.errors import (
    CancelledError,
    CapacityError,
    ConflictError,
    EngineDownError,
    InvalidInputError,
    LuthierError,
    NotFoundError,
    NotSupportedError,
)

_BY_STATUS: Mapping[int, type[LuthierError]] = {
    400: InvalidInputError,
    404: NotFoundError,
    405: NotSupportedError,
    409: ConflictError,
    413: InvalidInputError,
    415: InvalidInputError,
    422: InvalidInputError,
    429: CapacityError,
    499: CancelledError,
    501: NotSupportedError,
}


def error_from_response(response: httpx.Response) -> LuthierError:
    """The error that an answer of status 400 or more stands for; its body must have been read."""
    retry_after = response.headers.get("retry-after", "")
    return error_from_body(
        _body_of(response),
        status=response.status_code,
        retry_after_seconds=int(retry_after) if retry_after.isdigit() else 1,
    )


def error_from_body(
    body: Mapping[str, Any], *, status: int, retry_after_seconds: int = 1
) -> LuthierError:
    """The error that a JSON body ``{"details", "code", …}`` stands for.

    Our servers send the class's own code word; others (caikit's, a proxy) are known by status.

    Args:
        body: The decoded body.
        status: HTTP status, or the number in the body of an SSE error.
        retry_after_seconds: For an error that passes.
    """
    message = str(body.get("details") or body.get("detail") or f"the server answered {status}")
    known = dict(_classes_by_code())
    words = (body.get("error"), body.get("error_code"), body.get("code"))
    found = next((known[word] for word in words if isinstance(word, str) and word in known), None)
    error_class = found or _BY_STATUS.get(status, LuthierError)
    if issubclass(error_class, CapacityError | EngineDownError):
        return error_class(message, retry_after_seconds=retry_after_seconds)
    return error_class(message)


def _body_of(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    if isinstance(body, dict):
        return body
    text = response.text.strip()
    return {"details": f"{response.status_code}: {text[:500]}"} if text else {}


def _classes_by_code() -> Iterator[tuple[str, type[LuthierError]]]:
    waiting: list[type[LuthierError]] = [LuthierError]
    while waiting:
        error_class = waiting.pop()
        waiting += error_class.__subclasses__()
        yield error_class.code, error_class
