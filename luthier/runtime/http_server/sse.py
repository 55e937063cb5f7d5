"""Server-sent events, one message per result, without a thread per stream.

Messages have a ``data:`` line and nothing else: existing clients cut six characters off every line
and parse the rest, and by the standard a message without ``event:`` is of the kind ``message``.

Source:
    https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luthier.runtime.http_server.disconnect import while_connected
from luthier.runtime.http_server.problems import error_response

#: As long as ``data: ``: what those clients would cut off an error that came as plain JSON.
UNCUT = b" " * 6


class SseResponse(Response):
    """Sends results as they come; closes their generator when the client is gone.

    Args:
        first: The first result, which proved that there will be an answer.
        results: The others: caikit's data objects.
    """

    media_type = "text/event-stream"

    def __init__(self, first: Any, results: AsyncGenerator[Any]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._results = results

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then one message per result, then the end."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            with contextlib.suppress(ClientDisconnect, OSError):  # nobody is there to be told
                await send(start)
                await while_connected(receive, self._send_results(send))
        finally:
            await self._results.aclose()

    async def _send_results(self, send: Send) -> None:
        await _send_message(send, self._first.to_json().encode())
        try:
            async for result in self._results:
                await _send_message(send, result.to_json().encode())
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  the request handler: the head is sent already
            await _send_message(send, bytes(error_response(error).body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_message(send: Send, data: bytes) -> None:
    message = {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}
    await send(message)
