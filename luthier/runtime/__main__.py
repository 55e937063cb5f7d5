"""``python -m luthier.runtime``: read the config, serve until SIGTERM or Ctrl-C, drain.

The first line on stdout is JSON for whoever started this process; the log goes to stderr::

    {"event": "ready", "grpc": "127.0.0.1:8085", "http": "http://127.0.0.1:8080", "pid": 1}
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import alog

import luthier.compat  # noqa: F401  must come before the first import of caikit
from luthier.config import Config, load_config
from luthier.config.caikit_bridge import configure_logging
from luthier.errors import ConfigError

log = alog.use_channel(__name__)


def main() -> int:
    """Run the servers until somebody asks them to stop.

    Returns:
        The exit status: 0 after an orderly stop, 2 for a setting that cannot be.
    """
    share_cpus()
    try:
        config = load_config()
        configure_logging(config.log)
        asyncio.run(_serve(config))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def share_cpus() -> None:
    """Let idle threads of torch sleep instead of spin, here and in the trainings started here.

    By default they wait for the slowest of them in a busy loop. Where servers, trainings and other
    programs share the cores, that burns the time which the slowest one needs: on 2 busy cores a
    training step took 5 to 12 CPU seconds instead of 1. Torch reads it when it is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


async def _serve(config: Config) -> None:
    # Torch and transformers take seconds; a wrong setting must not wait for them.
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from luthier.runtime.server import Runtime  # noqa: PLC0415

    transformers_logging.disable_progress_bar()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runtime = Runtime(config)
    addresses = await runtime.start()
    ready = {"event": "ready", "grpc": addresses.grpc, "http": addresses.http, "pid": os.getpid()}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    log.info("serving: grpc=%s http=%s", addresses.grpc, addresses.http)
    await stop.wait()
    log.info("stopping: drain_seconds=%s", config.runtime.drain_seconds)
    await runtime.stop()
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
