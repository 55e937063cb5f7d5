"""Stops work when the client who asked for it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, and cancel it as soon as the client disconnects.

    Args:
        receive: The ASGI channel of a request whose body was read to its end.
        work: What the client waits for.

    Returns:
        The work's result.

    Raises:
        ClientDisconnect: If the client went away first. The work has ended by then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def until_disconnect(receive: Receive) -> None:
    """Return when the client is gone.

    Args:
        receive: The ASGI channel of the request.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
