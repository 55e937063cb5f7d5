"""Starting and stopping the whole."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
import httpx
import pytest
from fixtures.echo_runtime import EchoLog

from luthier.config import load_config
from luthier.errors import ConfigError
from luthier.modules import configure
from luthier.runtime.server import Runtime


@pytest.fixture
def settings(tmp_path):
    yield {
        "RUNTIME_LOCAL_MODELS_DIR": str(tmp_path / "models"),
        "RUNTIME_GRPC_PORT": "0",
        "RUNTIME_HTTP_PORT": "0",
        "RUNTIME_DRAIN_SECONDS": "1",
    }
    configure(load_config({}))


def make_runtime(settings, **changes: str) -> Runtime:
    return Runtime(load_config({**settings, **changes}), EchoLog().load)


async def test_both_servers_answer_and_stop_twice_without_harm(settings):
    runtime = make_runtime(settings)
    addresses = await runtime.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{addresses.http}/health")).text == "OK"
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
    await runtime.stop()
    await runtime.stop()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{addresses.http}/health")


@pytest.mark.parametrize("off", ["grpc", "http"])
async def test_a_server_can_be_off(settings, off):
    runtime = make_runtime(settings, **{f"RUNTIME_{off.upper()}_ENABLED": "false"})
    addresses = await runtime.start()
    assert (addresses.grpc == "", addresses.http == "") == (off == "grpc", off == "http")
    await runtime.stop()


async def test_a_port_that_is_taken_leaves_nothing_running(settings):
    first = make_runtime(settings)
    taken = (await first.start()).http.rpartition(":")[2]
    second = make_runtime(settings, RUNTIME_HTTP_PORT=taken)
    with pytest.raises(ConfigError, match=taken):
        await second.start()
    await first.stop()


async def test_a_stream_that_goes_on_does_not_hang_the_stop(settings, tmp_path):
    runtime = make_runtime(settings)
    (tmp_path / "models" / "echo").mkdir()
    (tmp_path / "models" / "echo" / "config.yml").write_text("")
    addresses = await runtime.start()
    body = {"model_id": "echo", "inputs": "slow"}
    path = f"{addresses.http}/api/v1/task/server-streaming-text-generation"
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", path, json=body) as response,
    ):
        await anext(response.aiter_bytes())
        started = time.monotonic()
        await runtime.stop()
        assert time.monotonic() - started < 6


async def test_listening_to_other_machines_is_warned_of(settings, caplog):
    runtime = make_runtime(settings, RUNTIME_HOST="0.0.0.0")
    with caplog.at_level(logging.WARNING):
        await runtime.start()
    assert "reachable from other machines" in caplog.text
    await runtime.stop()
