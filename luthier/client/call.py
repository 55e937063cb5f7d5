"""One request to the API as plain data, and how a client's method is made of it."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from luthier.errors import InvalidInputError

ROUTE_PREFIX = "/api/v1"

Answer = TypeVar("Answer")
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request and how to read its answer.

    Args:
        method: HTTP method.
        path: Path below the server's URL.
        read: Answer from the decoded body.
        query: Parameters of the URL.
        body: JSON body, or None.
        files: Multipart files as (field, (filename, content)), or empty.
        fields: Multipart fields beside the files.
        is_text: True if the answer's body is plain text.
    """

    method: str
    path: str
    read: Callable[[Any], Answer]
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    files: tuple[tuple[str, tuple[str, bytes]], ...] = ()
    fields: Mapping[str, str] | None = None
    is_text: bool = False


def method_like(call: Callable[..., Any], method: Method) -> Method:
    """Give a client's method the name, the parameters and the docstring of the call that it sends.

    Args:
        call: Makes the ``Call``.
        method: Takes the client, then what ``call`` takes.

    Returns:
        The method.
    """
    functools.update_wrapper(method, call)
    signature = inspect.signature(call)
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [client, *signature.parameters.values()]
    answer = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    signature = signature.replace(parameters=parameters, return_annotation=answer)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON bytes of a body; NaN and infinities, which JSON lacks, are refused.

    Raises:
        InvalidInputError: If a number is not finite, naming it, or a value is no JSON.
    """
    for path, number in _not_finite(body):
        raise InvalidInputError(f"'{path}' must be finite, got {number}")
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the request cannot be written as JSON: {error}") from error


def _not_finite(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Where in a body NaN and infinities are, as ``parameters.learning_rate``."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _not_finite(part, f"{path}[{index}]")
