"""From an error to what a wire says about it: one table for both doors."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import alog
import grpc

from luthier.errors import (
    CancelledError,
    CapacityError,
    ConflictError,
    EngineDownError,
    EngineError,
    InvalidInputError,
    LuthierError,
    NotFoundError,
    NotSupportedError,
    TrainingFailedError,
)

log = alog.use_channel(__name__)

MAX_DETAIL_CHARS = 2000


@dataclass(frozen=True)
class Status:
    """How an error class shows on each wire.

    Args:
        grpc: Status code of the call.
        http: Status code of the response.
    """

    grpc: grpc.StatusCode
    http: int


#: The nearest ancestor of an error's class that stands here decides.
STATUS: dict[type[BaseException], Status] = {
    InvalidInputError: Status(grpc.StatusCode.INVALID_ARGUMENT, 400),
    NotFoundError: Status(grpc.StatusCode.NOT_FOUND, 404),
    ConflictError: Status(grpc.StatusCode.FAILED_PRECONDITION, 409),
    CapacityError: Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    CancelledError: Status(grpc.StatusCode.CANCELLED, 499),
    NotSupportedError: Status(grpc.StatusCode.UNIMPLEMENTED, 501),
    TrainingFailedError: Status(grpc.StatusCode.INTERNAL, 500),
    EngineDownError: Status(grpc.StatusCode.UNAVAILABLE, 503),
    EngineError: Status(grpc.StatusCode.INTERNAL, 500),
    LuthierError: Status(grpc.StatusCode.INTERNAL, 500),
    BaseException: Status(grpc.StatusCode.INTERNAL, 500),
}


@dataclass(frozen=True)
class Problem:
    """An error, ready to be encoded.

    Args:
        details: The message for the caller.
        word: The stable code of the error's class.
        status: What each wire calls it.
        error_id: Found in the server's log beside the traceback, or a fresh id.
        retry_after_seconds: When to try again, or None.
    """

    details: str
    word: str
    status: Status
    error_id: str
    retry_after_seconds: int | None = None

    def as_body(self) -> dict[str, str | int]:
        """The JSON body of an HTTP error: caikit's three keys and our stable word."""
        return {
            "details": self.details,
            "code": self.status.http,
            "id": self.error_id,
            "error": self.word,
        }


def status_of(kind: type[BaseException]) -> Status:
    """The wire's words for an error class.

    Args:
        kind: Any exception class.

    Returns:
        The entry of its nearest ancestor in ``STATUS``.
    """
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def problem_of(error: BaseException) -> Problem:
    """Describe an error for a caller. One that is not ours is logged and keeps its message inside.

    Args:
        error: What a handler raised.

    Returns:
        The problem; for a foreign error its details name only an id that the log has too.
    """
    error_id = uuid.uuid4().hex
    status = status_of(type(error))
    if not isinstance(error, LuthierError):
        log.error("request failed unexpectedly: error_id=%s", error_id, exc_info=error)
        return Problem(f"internal error, id {error_id}", LuthierError.code, status, error_id)
    if status.http == 500:
        log.error("request failed: error_id=%s", error_id, exc_info=error)
    retry_after = None
    if isinstance(error, CapacityError | EngineDownError):
        retry_after = error.retry_after_seconds
    return Problem(shorten(str(error)), error.code, status, error_id, retry_after)


def shorten(text: str) -> str:
    """A message that fits a header: at most ``MAX_DETAIL_CHARS``, no lone surrogates.

    Args:
        text: Any text.

    Returns:
        The text, cut if need be, that every codec can encode.
    """
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_DETAIL_CHARS else f"{clean[: MAX_DETAIL_CHARS - 3]}..."
