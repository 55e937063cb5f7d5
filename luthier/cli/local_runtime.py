"""A private runtime for ``--local``: a child process on a free loopback port, gone afterwards."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from luthier.cli.child_settings import RUNTIME_MODULE, add_settings
from luthier.client import Client
from luthier.errors import LuthierError

STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
#: Of the runtime's log, what an error may quote.
MAX_QUOTED_CHARS = 500


@contextmanager
def private_runtime(models_dir: Path, *, base_models_dir: Path | None = None) -> Iterator[Client]:
    """Run a server for the length of the block; Ctrl-C ends the wait for it.

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
    environment = dict(os.environ)
    add_settings(
        environment,
        {
            "RUNTIME_HOST": "127.0.0.1",
            "RUNTIME_HTTP_ENABLED": "true",
            "RUNTIME_HTTP_PORT": 0,
            "RUNTIME_GRPC_ENABLED": "false",
            "RUNTIME_LOCAL_MODELS_DIR": models_dir.resolve(),
            "RUNTIME_TRAINING_OUTPUT_DIR": models_dir.resolve(),
            "RUNTIME_TRAINING_SAVE_WITH_ID": "false",
            "BASE_MODELS_DIR": base_models_dir,
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "error"),
        },
    )
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", RUNTIME_MODULE],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C is for us: we cancel what runs and then stop the child.
            start_new_session=True,
            preexec_fn=stop_with_parent,
        )
        try:
            with Client(_read_url(process, log)) as client:
                yield client
        finally:
            _stop(process)


def _read_url(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Wait for the line in which the runtime says where it listens."""
    if process.stdout is None:
        raise LuthierError("the local runtime has no output")
    for line in process.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(message, dict) and message.get("event") == "ready":
            return str(message["http"])
    process.wait()
    raise LuthierError(f"the local runtime did not start: {_last_words(log)}")


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    text = log.read().decode("utf-8", errors="replace").strip()
    return text[-MAX_QUOTED_CHARS:] or "it said nothing"


def stop_with_parent() -> None:
    """In the child: get SIGTERM when this command dies, even by SIGKILL. Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    wait_or_kill(process)


def wait_or_kill(process: subprocess.Popen[Any]) -> None:
    """Give a child that was told to end, or has nothing left to do, some seconds for it.

    Args:
        process: Its output is closed afterwards.
    """
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
