"""A Luthier server as a child process: on its usual ports, or on free ones if those are taken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HTTP_PORT = 8080
GRPC_PORT = 8085


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        http: Its URL.
        grpc: Its gRPC address, ``host:port``.
        pid: Its process.
    """

    http: str
    grpc: str
    pid: int


@contextmanager
def running_server(models_dir: Path, log_file: Path) -> Iterator[Server]:
    """Start a server, and stop it when the block ends.

    Args:
        models_dir: Folder of the models that it serves and saves.
        log_file: Gets what it logs.

    Yields:
        Where it listens.

    Raises:
        RuntimeError: If it does not start; its log says why.
    """
    environment = {
        "RUNTIME_HTTP_PORT": str(port_or_any(HTTP_PORT)),
        "RUNTIME_GRPC_PORT": str(port_or_any(GRPC_PORT)),
        **os.environ,
        "RUNTIME_LOCAL_MODELS_DIR": str(models_dir),
    }
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.runtime"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C is for the demo, which then stops the server in order.
            start_new_session=True,
        )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"the server did not start; {log_file} says why")
        ready = json.loads(line)
        yield Server(http=ready["http"], grpc=ready["grpc"], pid=ready["pid"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def port_or_any(port: int) -> int:
    """``port`` if nobody has it, else 0: any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port
