"""A private runtime for ``--local``: a child process on a free loopback port, gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from luthier.cli.serve import RUNTIME_MODULE, add_settings
from luthier.client import Client
from luthier.errors import LuthierError, ServerUnreachableError

START_SECONDS = 120.0
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.1
#: Of the runtime's output, what an error may quote.
MAX_QUOTED_CHARS = 500


@contextmanager
def private_runtime(models_dir: Path, *, base_models_dir: Path | None = None) -> Iterator[Client]:
    """Run a server for the length of the block.

    It gets the caller's environment, so it finds the same base models and settings; only its
    address, its folder of models and its log are its own.

    Args:
        models_dir: Folder of the models it serves and saves.
        base_models_dir: Folder of base models; None keeps the environment's.

    Yields:
        A client of it.

    Raises:
        LuthierError: If it does not start; the message quotes its last words.
    """
    port = free_port()
    environment = dict(os.environ)
    add_settings(
        environment,
        {
            "RUNTIME_HOST": "127.0.0.1",
            "RUNTIME_HTTP_ENABLED": "true",
            "RUNTIME_HTTP_PORT": port,
            "RUNTIME_GRPC_ENABLED": "false",
            "RUNTIME_LOCAL_MODELS_DIR": models_dir.resolve(),
            "RUNTIME_TRAINING_OUTPUT_DIR": models_dir.resolve(),
            "RUNTIME_TRAINING_SAVE_WITH_ID": "false",
            "BASE_MODELS_DIR": base_models_dir,
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "error"),
        },
    )
    with TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", RUNTIME_MODULE],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us: we cancel what runs and then stop the child.
            start_new_session=True,
        )
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                _wait_until_healthy(client, process, output)
                yield client
        finally:
            _stop(process)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(
    client: Client, process: subprocess.Popen[bytes], output: IO[bytes]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LuthierError(f"the local runtime did not start: {_last_words(output)}")
        try:
            client.health()
        except ServerUnreachableError:
            time.sleep(LOOK_SECONDS)
        else:
            return
    raise LuthierError(f"the local runtime did not start within {START_SECONDS:.0f} s")


def _last_words(output: IO[bytes]) -> str:
    output.seek(0)
    text = output.read().decode("utf-8", errors="replace").strip()
    return text[-MAX_QUOTED_CHARS:] or "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
