"""The owner's end of one engine process: starts it, talks to it, says what it died of."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

import alog

from luthier.inference.engine_process.messages import (
    Message,
    Operation,
    encode_operation,
    receive_message,
    send_encoded,
)

log = alog.use_channel(__name__)

_MODULE = "luthier.inference.engine_process.child"
#: From the end of the connection to that of the process; its system frees memory meanwhile.
_EXIT_SECONDS = 10.0

#: One operation, encoded; or what makes a message when it is sent; or None at the end.
_Outgoing = str | Callable[[], Message] | None


class ChildProcess:
    """A process that runs one engine.

    Args:
        tensors_fd: Descriptor of the base model's tensors, which it inherits.

    Raises:
        OSError: If the process cannot be started.
    """

    def __init__(self, tensors_fd: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                # No path of whoever calls comes before ours: ``-P``.
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(tensors_fd)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the owner's standard output belongs to whoever started it
                pass_fds=(theirs.fileno(), tensors_fd),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C in a terminal is for the owner
            )
            self._connection = Connection(ours.detach())
        # Putting is re-entrant: the collector may drop a stream, and so cancel it, at any line.
        self._outgoing: SimpleQueue[_Outgoing] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-requests", daemon=True)
        self._writer.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, operation: Operation) -> None:
        """Send an operation, with all that is said meanwhile; never blocks."""
        self._outgoing.put(encode_operation(operation))

    def say_later(self, make_message: Callable[[], Message]) -> None:
        """Send what takes a while to put into words, in its turn; never blocks."""
        self._outgoing.put(make_message)

    def receive(self, timeout_seconds: float | None) -> Message | None:
        """Wait for a message.

        Args:
            timeout_seconds: At most; None waits for ever.

        Returns:
            The message; None if none came in time.

        Raises:
            EOFError: If the process is gone.
            OSError: Likewise.
        """
        if not self._connection.poll(timeout_seconds):
            return None
        return receive_message(self._connection)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> int:
        """Wait for its end; one that lives on without a connection is killed.

        Returns:
            Its exit status, negative for a signal.
        """
        self._outgoing.put(None)
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._writer.join()
        self._connection.close()
        return self._process.wait()

    def _write(self) -> None:
        """The thread's life: all that has been said meanwhile goes in one message."""
        try:
            while True:
                next_ones = self._all_said()
                if next_ones and next_ones[-1] is None:
                    return
                self._send(next_ones)
        except (BrokenPipeError, ConnectionResetError):
            log.debug("The process of an engine is gone")
        except Exception:
            log.error("Requests cannot be sent to the process of an engine", exc_info=True)
            self.kill()  # nobody must wait for an answer to what was not sent

    def _all_said(self) -> list[_Outgoing]:
        said = [self._outgoing.get()]
        while said[-1] is not None:
            try:
                said.append(self._outgoing.get_nowait())
            except Empty:
                break
        return said

    def _send(self, said: list[_Outgoing]) -> None:
        operations: list[str] = []
        for each in said:
            if isinstance(each, str):
                operations.append(each)
            elif each is not None:
                self._flush(operations)
                message = each()
                send_encoded(
                    self._connection,
                    [encode_operation(operation) for operation in message.operations],
                    message.blobs,
                )
        self._flush(operations)

    def _flush(self, operations: list[str]) -> None:
        if operations:
            send_encoded(self._connection, operations)
            operations.clear()
