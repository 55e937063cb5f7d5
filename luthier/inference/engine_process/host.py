"""The process's side: does what the owner asks for, and tells it each step in one message."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import alog

from luthier.adapters.stored_adapter import StoredAdapter
from luthier.errors import EngineError, LuthierError
from luthier.inference.base import Engine
from luthier.inference.channels import Channel, ChannelStream, Outbox
from luthier.inference.engine_process.messages import (
    Message,
    Operation,
    decode_error,
    decode_request,
    encode_chunk,
    encode_error,
    receive_message,
    send_message,
    unpack_tensors,
)
from luthier.inference.engine_process.sent_adapters import receive_adapter
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

#: How often a process that hears nothing looks whether its owner and its engine are alive, and
#: says that it is itself.
_LOOK_SECONDS = 1.0


class EngineHost(Outbox):
    """Serves one engine to the process at the other end of a connection.

    Args:
        connection: To the owner.
        engine: Started; closed when the owner asks for it.
        base_model: What the engine serves.
        owner_pid: The process that started this one.
    """

    def __init__(
        self, connection: Connection, engine: Engine, base_model: BaseModel, *, owner_pid: int
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._base_model = base_model
        self._owner_pid = owner_pid
        self._streams: dict[int, ChannelStream] = {}
        self._held: dict[str, Any] = {}  # adapters and heads, or the error that came instead
        self._num_seen = 0
        # Steps of several threads must neither overtake each other nor mix on the wire.
        self._sending = threading.Lock()

    def serve(self) -> bool:
        """Do what the owner asks for, until it is gone or asks for the end.

        Returns:
            True if it asked for the end; its streams were told by then.
        """
        try:
            return self._serve()
        except (EOFError, OSError):  # the owner's end of the connection is closed
            return False
        except Exception as error:
            # What is about no request in particular is about all of them.
            log.error("A message of the owner cannot be followed", exc_info=True)
            self.send(["dead", f"it cannot follow a message: {type(error).__name__}: {error}"])
            return False

    def _serve(self) -> bool:
        while self._owner_is_there():
            message = receive_message(self._connection)
            for operation in message.operations:
                if operation[0] == "close":
                    self._engine.close()
                    return True
                self._do(operation, list(message.blobs))
        return False

    def send(self, *operations: Operation) -> None:
        """Say something to the owner. One that is gone is not told."""
        with self._sending:
            self._send(list(operations))

    def collect(self, channels: Sequence[Channel]) -> None:
        """Send what a step gave, all rows in one message; see ``Outbox``."""
        with self._sending:
            chunks: list[list[Any]] = []
            errors: list[list[Any]] = []
            for channel in channels:
                for item in channel.take_all():
                    if isinstance(item, LuthierError):
                        errors.append([channel.tag, *encode_error(item)])
                    else:
                        chunks.append(encode_chunk(channel.tag, item))
                if channel.is_ended:
                    self._streams.pop(channel.tag, None)
            if chunks or errors:
                self._send([["step", self._status(), chunks, errors]])
        self._say_if_dead()

    def _owner_is_there(self) -> bool:
        while not self._connection.poll(_LOOK_SECONDS):
            # The connection may have been inherited by somebody else who holds it open.
            if os.getppid() != self._owner_pid:
                return False
            self.send(["alive"])
            self._say_if_dead()
        return True

    def _say_if_dead(self) -> None:
        status = self._engine.status()
        if not status.is_healthy and status.detail != "closed":
            self.send(["dead", status.detail])

    def _status(self) -> list[int]:
        # Seen first: a request that comes in between is rather counted twice than not at all.
        num_seen = self._num_seen
        status = self._engine.status()
        return [num_seen, status.num_waiting]

    def _send(self, operations: list[Operation]) -> None:
        with contextlib.suppress(OSError):  # ``serve`` will see that the owner is gone
            send_message(self._connection, Message(operations))

    def _do(self, operation: Operation, blobs: list[bytes]) -> None:
        """Do one thing; what it is about fails alone."""
        name, *values = operation
        try:
            self._try(name, values, blobs)
        except Exception as error:  # noqa: BLE001  logged there: what it is about fails alone
            self._fail(name, values, _as_ours(error, name))

    def _try(self, name: str, values: list[Any], blobs: list[bytes]) -> None:
        if name == "submit":
            self._submit(*values)
        elif name == "cancel":
            stream = self._streams.get(values[0])
            if stream is not None:
                stream.cancel()
        elif name == "adapter":
            self._receive_adapter(*values, blobs=blobs)
        elif name == "keeps":
            self._say_if_kept(*values)
        elif name == "adapters":
            self._say_adapters(*values)
        elif name == "broken":
            raise decode_error(values[1:])
        elif name == "head":
            self._held[values[0]] = unpack_tensors(blobs[0])["head"]
        elif name == "forget":
            self._held.pop(values[0], None)
        else:
            raise EngineError(f"there is no operation {name!r}")

    def _fail(self, name: str, values: list[Any], error: LuthierError) -> None:
        """Tell whoever needs what could not be done; raise the error if that is everybody."""
        if name == "submit":
            self._refuse(values[0], error)
        elif name in ("adapter", "broken", "head"):
            # For the requests that are on their way; the owner sends it anew for the next ones.
            self._held[values[0]] = error
            self.send(["lost", values[0]])
        elif name in ("keeps", "adapters"):
            self.send(["answer", values[0], None, *encode_error(error)])
        else:
            raise error

    def _say_if_kept(self, number: int, delta_layers: list[str], whole_layers: list[str]) -> None:
        """Whether the engine keeps any adapter that changes these layers."""
        adapter = StoredAdapter.unread(
            Path(),
            base_model=self._base_model,
            content_hash="",
            delta_layers=frozenset(delta_layers),
            whole_layers=frozenset(whole_layers),
        )
        self.send(["answer", number, self._engine.keeps_deltas(adapter)])

    def _say_adapters(self, number: int) -> None:
        status = self._engine.adapter_status()
        self.send(["answer", number, None if status is None else dataclasses.asdict(status)])

    def _submit(self, number: int, values: list[Any]) -> None:
        try:
            for held in (self._held.get(values[1]), self._held.get(str(values[-1]))):
                if isinstance(held, LuthierError):
                    raise held
            stream = self._engine.submit(decode_request(values, self._held))
        finally:
            self._num_seen += 1
        assert isinstance(stream, ChannelStream)
        self._streams[number] = stream
        stream.forward_to(self, tag=number)

    def _refuse(self, number: int, error: LuthierError) -> None:
        with self._sending:
            self._send([["step", self._status(), [], [[number, *encode_error(error)]]]])

    def _receive_adapter(self, key: str, about: dict[str, Any], *, blobs: list[bytes]) -> None:
        try:
            self._held[key] = receive_adapter(about, blobs, base_model=self._base_model)
        finally:
            if "saved" in about:
                shutil.rmtree(Path(about["saved"]), ignore_errors=True)


def _as_ours(error: Exception, name: str) -> LuthierError:
    """The error that an owner is told; what nobody foresaw is logged."""
    if isinstance(error, LuthierError):
        return error
    log.error("The process of an engine could not do %r", name, exc_info=error)
    what = "generation" if name == "submit" else repr(name)
    return EngineError(f"{what} failed with {type(error).__name__}: {error}")
