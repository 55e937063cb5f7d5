"""The HTTP server: uvicorn on the event loop that the rest of the runtime lives on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from luthier.errors import ConfigError


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process that runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Answers HTTP on one port. Lives on one event loop.

    Args:
        app: What answers.
        host: Address to listen on.
        port: 0 takes a free one.
        drain_seconds: How long requests may run after ``stop``.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int, drain_seconds: float) -> None:
        self._host = host
        self._port = port
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen and serve.

        Returns:
            The port.

        Raises:
            ConfigError: If the address is taken or not to be had.
        """
        listener = _listen(self._host, self._port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise ConfigError(f"HTTP did not start on {self._host}:{self._port}")
            await asyncio.sleep(0.01)
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Take no more requests, let those that run end within the drain time, drop the rest."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ConfigError(f"HTTP cannot listen on {host}:{port}: {error.strerror}") from error
