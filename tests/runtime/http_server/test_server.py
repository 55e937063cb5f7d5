"""uvicorn on our loop: ports, stopping, draining."""

from __future__ import annotations

import asyncio
import signal
import time

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from luthier.errors import ConfigError
from luthier.runtime.http_server.server import HttpServer


def make_app(seconds: float = 0.0) -> FastAPI:
    app = FastAPI()

    async def answer() -> PlainTextResponse:
        await asyncio.sleep(seconds)
        return PlainTextResponse("hi")

    app.add_api_route("/", answer, methods=["GET"])
    return app


def make_server(app: FastAPI, port: int = 0, drain_seconds: float = 5) -> HttpServer:
    return HttpServer(app, host="127.0.0.1", port=port, drain_seconds=drain_seconds)


async def test_port_0_takes_a_free_one_and_says_which():
    server = make_server(make_app())
    port = await server.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "hi"
    await server.stop()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")


async def test_a_port_that_is_taken_is_named():
    first = make_server(make_app())
    port = await first.start()
    with pytest.raises(ConfigError, match=str(port)):
        await make_server(make_app(), port).start()
    await first.stop()


async def test_a_request_that_runs_may_end():
    server = make_server(make_app(seconds=0.5))
    port = await server.start()
    async with httpx.AsyncClient() as client:
        asking = asyncio.ensure_future(client.get(f"http://127.0.0.1:{port}/"))
        await asyncio.sleep(0.2)
        await server.stop()
        assert (await asking).text == "hi"


async def test_a_request_that_runs_too_long_is_dropped():
    server = make_server(make_app(seconds=60), drain_seconds=1)
    port = await server.start()
    async with httpx.AsyncClient(timeout=60) as client:
        asking = asyncio.ensure_future(client.get(f"http://127.0.0.1:{port}/"))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < 5
        answer = (await asyncio.gather(asking, return_exceptions=True))[0]
        assert isinstance(answer, httpx.HTTPError) or answer.status_code >= 500


async def test_signals_are_left_to_the_process():
    before = signal.getsignal(signal.SIGTERM)
    server = make_server(make_app())
    await server.start()
    assert signal.getsignal(signal.SIGTERM) is before
    await server.stop()


async def test_a_server_that_never_started_stops():
    await make_server(make_app()).stop()
