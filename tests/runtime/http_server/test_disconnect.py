"""Work for a client who is gone stops."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from luthier.runtime.http_server.disconnect import until_disconnect, while_connected


def receiver(*messages: str, seconds: float = 0.01):
    waiting = list(messages)

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        await asyncio.sleep(seconds)
        return {"type": waiting.pop(0)}

    return receive


async def test_work_that_ends_first_gives_its_result():
    async def work():
        return 7

    assert await while_connected(receiver(), work()) == 7


async def test_a_disconnect_ends_the_work_before_the_error_is_raised():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ClientDisconnect):
        await while_connected(receiver("http.request", "http.disconnect"), work())
    assert ended == [True]


async def test_an_error_of_the_work_passes():
    async def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(receiver(), work())


async def test_cancelling_ends_the_work():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    task = asyncio.ensure_future(while_connected(receiver(), work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_only_a_disconnect_counts():
    await asyncio.wait_for(until_disconnect(receiver("http.request", "http.disconnect")), 5)
