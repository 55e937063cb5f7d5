"""Errors as HTTP responses: one body for all of them, whoever raised."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from luthier.runtime.errors import Problem, problem_of, shorten

#: Details of a refused body: ``type``, ``loc`` and ``msg``, as pydantic has them.
Details = Sequence[dict[str, Any]]


class HttpError(Exception):
    """Something only HTTP knows: a body too large, a media type, a value of the wrong type.

    Args:
        status: HTTP status.
        word: Stable code of the kind of error.
        details: Message for the caller.
        additional_info: What is wrong where.
    """

    def __init__(self, status: int, word: str, details: str, additional_info: Details = ()) -> None:
        super().__init__(details)
        self.status = status
        self.word = word
        self.additional_info = additional_info


def invalid_body(additional_info: Details) -> HttpError:
    """The error for a body that does not have the documented form.

    Args:
        additional_info: At least one entry.

    Returns:
        A 422.
    """
    first = additional_info[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(additional_info) - 1} more)" if len(additional_info) > 1 else ""
    details = f"{place}: {first['msg']}{more}" if place else f"{first['msg']}{more}"
    return HttpError(422, "invalid_request", details, additional_info)


def error_response(error: Exception, *, prefix: bytes = b"") -> Response:
    """What a client gets for an error.

    Args:
        error: Ours, HTTP's or anybody's.
        prefix: White space before the JSON.

    Returns:
        ``{"details", "code", "id", "error"}`` with the error's status, and for a 422
        ``additional_info``.
    """
    headers = {}
    if isinstance(error, HttpError):
        status = error.status
        body: dict[str, Any] = _body(status, error.word, str(error))
        if error.additional_info:
            body["additional_info"] = list(error.additional_info)
    else:
        problem: Problem = problem_of(error)
        status, body = problem.status.http, dict(problem.as_body())
        if problem.retry_after_seconds is not None:
            headers["Retry-After"] = str(problem.retry_after_seconds)
    content = prefix + json.dumps(body).encode()
    return Response(content, status, headers, media_type="application/json")


Handler = Callable[..., Awaitable[Response]]


def guarded(handler: Handler, *, error_prefix: bytes = b"") -> Handler:
    """A route's handler whose every error becomes a response.

    Args:
        handler: An endpoint.
        error_prefix: White space before the JSON of an error.

    Returns:
        An endpoint with the same signature.
    """

    @functools.wraps(handler)
    async def handle(*args: Any, **kwargs: Any) -> Response:
        try:
            return await handler(*args, **kwargs)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001  the request handler
            return error_response(error, prefix=error_prefix)

    return handle


def install(app: FastAPI) -> None:
    """Make every error of the app look alike, those of the framework included.

    Args:
        app: Gets the handlers.
    """

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        word = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
        detail = error.detail if isinstance(error, HTTPException) else ""
        response = error_response(HttpError(status, word, f"{detail}: {request.url.path}"))
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    async def on_validation_error(request: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        info = [{"type": entry["type"], "loc": list(entry["loc"]), "msg": entry["msg"]}
                for entry in found]  # fmt: skip
        return error_response(invalid_body(info))

    app.add_exception_handler(HttpError, on_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_error)


def _body(status: int, word: str, details: str) -> dict[str, Any]:
    return {
        "details": shorten(details),
        "code": status,
        "id": uuid.uuid4().hex,
        "error": word,
    }
