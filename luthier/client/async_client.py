"""The client for code on an event loop; method for method the same as ``Client``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from luthier.client import calls, training_calls
from luthier.client.call import Call, method_like
from luthier.client.error_mapping import error_from_response
from luthier.client.results import GeneratedChunk, TrainingStatus
from luthier.client.sse import EventDecoder
from luthier.client.transport import (
    ANSWER_SECONDS,
    DEFAULT_URL,
    chunk_of,
    http_options,
    named_errors,
    read_answer,
    request_of,
)
from luthier.client.watch import POLL_SECONDS, ProgressCallback, Watch

Answer = TypeVar("Answer")
Params = ParamSpec("Params")


def _awaits(
    call: Callable[Params, Call[Answer]],
) -> Callable[Concatenate[AsyncClient, Params], Coroutine[Any, Any, Answer]]:
    """The method that sends a call and waits for its answer."""

    async def method(self: AsyncClient, /, *args: Params.args, **kwargs: Params.kwargs) -> Answer:
        return await self._send(call(*args, **kwargs))

    return method_like(call, method)


class AsyncClient:
    """A Luthier server over HTTP.

    Every method raises the ``luthier.errors`` class that the server raised, and
    ``ServerUnreachableError`` where no answer comes. Use it as a context manager, or ``close`` it.

    Args:
        url: Address of the server.
        timeout_seconds: How long one answer may take; between two messages of a stream, likewise.
        tenant: On whose behalf it asks; tenants share the server fairly.
        priority: Of its requests among those of the same tenant; more is sooner.
        transport: Replaces the network, for tests.

    Example:
        async with AsyncClient() as client:
            print((await client.generate("my-model", "Where is my parcel?")).text)
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        tenant: str = "",
        priority: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        with named_errors(self.url):
            self._http = httpx.AsyncClient(
                **http_options(self.url, timeout_seconds, tenant=tenant, priority=priority),
                transport=transport,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Free the connections. Idempotent."""
        await self._http.aclose()

    health = _awaits(calls.health)
    version = _awaits(calls.version)

    models = _awaits(calls.models)
    deploy = _awaits(calls.deploy)
    undeploy = _awaits(calls.undeploy)

    generate = _awaits(calls.generate)
    generate_many = _awaits(calls.generate_many)
    classify = _awaits(calls.classify)
    tokenize = _awaits(calls.tokenize)

    train_prompt = _awaits(training_calls.train_prompt)
    train_lora = _awaits(training_calls.train_lora)
    train_head = _awaits(training_calls.train_head)
    train_full = _awaits(training_calls.train_full)

    training = _awaits(training_calls.training)
    trainings = _awaits(training_calls.trainings)
    training_metrics = _awaits(training_calls.training_metrics)
    cancel_training = _awaits(training_calls.cancel_training)
    resume_training = _awaits(training_calls.resume_training)

    async def stream(
        self, model_id: str, text: str, **parameters: Any
    ) -> AsyncIterator[GeneratedChunk]:
        """``Client.stream``, message by message on the event loop."""
        call = calls.stream(model_id, text, **parameters)
        decoder = EventDecoder()
        with named_errors(self.url):
            async with self._http.stream(**request_of(call)) as response:
                if response.is_error:
                    await response.aread()
                    raise error_from_response(response)
                async for received in response.aiter_bytes():
                    for event in decoder.feed(received):
                        yield chunk_of(event)

    async def wait(
        self,
        training_id: str,
        *,
        on_progress: ProgressCallback | None = None,
        poll_seconds: float = POLL_SECONDS,
        timeout_seconds: float | None = None,
    ) -> TrainingStatus:
        """``Client.wait``, without holding the event loop."""
        watch = Watch(training_id, on_progress=on_progress, timeout_seconds=timeout_seconds)
        while True:
            status = await self.training(training_id)
            metrics = await self.training_metrics(training_id) if watch.wants_metrics else []
            if watch.look(status, metrics):
                return status
            await asyncio.sleep(poll_seconds)

    async def _send(self, call: Call[Answer]) -> Answer:
        with named_errors(self.url):
            response = await self._http.request(**request_of(call))
        return read_answer(call, response)
