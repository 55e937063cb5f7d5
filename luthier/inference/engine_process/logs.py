"""Log records of an engine's process come out of its owner, in the owner's format and filters."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

#: How long the last records may take on their way.
_FINISH_SECONDS = 1.0


class LogSender(logging.Handler):
    """Sends all records of this process instead of writing them.

    In a thread of its own: something may be logged while something else is being sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: SimpleQueue[list[Any] | None] = SimpleQueue()

    def install(self, *, level: int) -> None:
        """Take the place of all handlers of the root logger.

        Args:
            level: Records below it are not sent.
        """
        root = logging.getLogger()
        root.handlers = [self]
        root.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; its traceback becomes part of its message.

        One whose arguments do not fit its message is told to standard error, as logging does.
        """
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
        except Exception:  # noqa: BLE001  handleError says what and where
            self.handleError(record)
            return
        self._records.put(["log", record.name, record.levelno, text])

    def start(self, send: Callable[[list[Any]], None]) -> None:
        """Send what was logged by now and what will be.

        Args:
            send: Takes an operation; thread-safe.
        """
        self._thread = threading.Thread(
            target=self._live, args=(send,), name="log-sender", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Send what has not been sent; only after ``start``."""
        self._records.put(None)
        self._thread.join(_FINISH_SECONDS)

    def _live(self, send: Callable[[list[Any]], None]) -> None:
        while (record := self._records.get()) is not None:
            send(record)


def write_log(name: str, level: int, text: str) -> None:
    """Log what another process did.

    Args:
        name: Of the channel.
        level: Of the record.
        text: Of the message.
    """
    channel = logging.getLogger(name)
    if channel.isEnabledFor(level):
        channel.log(level, "%s", text)
