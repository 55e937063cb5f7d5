"""Refuses bodies that are too large, whether or not they say so beforehand."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.runtime.http_server.problems import HttpError, error_response


class BodyLimit:
    """ASGI middleware that counts the bytes of each request's body.

    Args:
        app: What it guards.
        max_body_bytes: Larger bodies are refused with 413.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless it declares too much; stop it when it has sent too much."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._declared(scope) > self._max_body_bytes:
            await error_response(self._too_large())(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _declared(self, scope: Scope) -> int:
        lengths = [value for key, value in scope["headers"] if key == b"content-length"]
        return int(lengths[0]) if lengths and lengths[0].isdigit() else 0

    def _too_large(self) -> HttpError:
        return HttpError(
            413, "body_too_large", f"the body is larger than {self._max_body_bytes} bytes"
        )
