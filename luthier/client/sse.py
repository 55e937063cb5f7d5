"""Server-sent events: bytes in, messages out, for synchronous and asynchronous readers alike.

httpx's own line reader splits where ``str.splitlines`` does, which includes U+2028 and U+0085.
Both may stand inside the JSON of a token, and end no line here.

Source:
    https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """One message.

    Args:
        data: Its data lines, joined by newlines.
        event: Its kind; ``message`` where the server names none.
    """

    data: str
    event: str = "message"


class EventDecoder:
    """Takes bytes as they come and gives every message once it is complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._event = ""
        self._data: list[str] = []

    def feed(self, received: bytes) -> Iterator[ServerSentEvent]:
        """Yield the messages that ``received`` completes. Consume it before feeding again."""
        self._buffer += received
        while match := _LINE_END.search(self._buffer):
            if match.group() == b"\r" and match.end() == len(self._buffer):
                return  # the other half of a CR LF may still come
            line, self._buffer = self._buffer[: match.start()], self._buffer[match.end() :]
            message = self._take_line(line.decode("utf-8", errors="replace"))
            if message is not None:
                yield message

    def _take_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        message = None
        if self._data:
            message = ServerSentEvent("\n".join(self._data), self._event or "message")
        self._event, self._data = "", []
        return message
