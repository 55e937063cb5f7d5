"""The process of one engine: ``python -m luthier.inference.engine_process.child <descriptors>``.

It builds the base model around its owner's tensors, runs the engine that a thread would run, and
ends with its owner, however that ends. Ctrl-C and SIGTERM are the owner's business, which lets
requests end first.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before anything that takes long is imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

import alog
import torch

from luthier.errors import EngineError, LuthierError
from luthier.inference.engine_process.host import EngineHost
from luthier.inference.engine_process.logs import LogSender
from luthier.inference.engine_process.messages import (
    Message,
    encode_error,
    receive_message,
    send_message,
)
from luthier.inference.options import EngineOptions
from luthier.inference.registry import make_engine
from luthier.resources.base_model import BaseModel
from luthier.resources.model_copy import build_base_model
from luthier.resources.shared_tensors import TensorPlace, map_tensors

log = alog.use_channel(__name__)

#: How long an owner may take to die once it has closed its end of the connection.
_DYING_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Serve one engine until the owner is gone or asks for the end.

    Args:
        arguments: Descriptors of the connection and of the shared tensors, inherited.

    Returns:
        The exit status: 0 if the owner asked for the end.
    """
    faulthandler.enable()
    connection_fd, tensors_fd = (int(argument) for argument in arguments)
    connection = Connection(connection_fd)
    try:
        ((_, start),) = receive_message(connection).operations
    except (EOFError, OSError):
        return 1
    logs = LogSender()
    logs.install(level=start["log_level"])
    try:
        host = _host(connection, start, tensors_fd)
    except Exception as error:
        log.error("The engine did not start", exc_info=True)
        logs.start(lambda record: send_message(connection, Message([record])))
        logs.finish()
        send_message(connection, Message([["refused", *encode_error(_as_ours(error))]]))
        return 1
    logs.start(host.send)
    is_asked = host.serve()
    logs.finish()
    if not is_asked and _has_lost(start["owner_pid"]):
        shutil.rmtree(start["folder"], ignore_errors=True)  # it can no longer do that itself
    return 0 if is_asked else 1


def _has_lost(owner_pid: int) -> bool:
    """Whether the owner has died. Its end of the connection is closed a little earlier."""
    until = time.monotonic() + _DYING_SECONDS
    while os.getppid() == owner_pid and time.monotonic() < until:
        time.sleep(0.01)
    return os.getppid() != owner_pid


def _host(connection: Connection, start: dict[str, Any], tensors_fd: int) -> EngineHost:
    """The running engine, which the owner was told of."""
    base_model = _base_model(start, tensors_fd)
    engine = make_engine(base_model, EngineOptions(**start["options"]))
    host = EngineHost(connection, engine, base_model, owner_pid=start["owner_pid"])
    host.send(["ready", engine.is_rounded])
    return host


def _as_ours(error: Exception) -> LuthierError:
    if isinstance(error, LuthierError):
        return error
    return EngineError(f"it did not start: {type(error).__name__}: {error}")


def _base_model(start: dict[str, Any], tensors_fd: int) -> BaseModel:
    torch.set_num_threads(start["num_threads"])
    places = {
        name: TensorPlace(offset, dtype, tuple(shape), tuple(stride))
        for name, (offset, dtype, shape, stride) in start["places"].items()
    }
    tensors = map_tensors(tensors_fd, places)
    device = torch.device(start["device"])
    if device.type != "cpu":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    os.close(tensors_fd)
    return build_base_model(Path(start["folder"]), tensors)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Threads of the engine may be in the middle of a step that nobody wants any more.
    os._exit(status)
