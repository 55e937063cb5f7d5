"""The client for ordinary code: every call waits for its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


def _waits(
    call: Callable[Params, Call[Answer]],
) -> Callable[Concatenate[Client, Params], Answer]:
    """The method that sends a call and waits for its answer."""

    def method(self: Client, /, *args: Params.args, **kwargs: Params.kwargs) -> Answer:
        return self._send(call(*args, **kwargs))

    return method_like(call, method)


class Client:
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
        with Client() as client:
            print(client.generate("my-model", "Where is my parcel?").text)
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        tenant: str = "",
        priority: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        with named_errors(self.url):
            self._http = httpx.Client(
                **http_options(self.url, timeout_seconds, tenant=tenant, priority=priority),
                transport=transport,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the connections. Idempotent."""
        self._http.close()

    health = _waits(calls.health)
    version = _waits(calls.version)

    models = _waits(calls.models)
    deploy = _waits(calls.deploy)
    undeploy = _waits(calls.undeploy)

    generate = _waits(calls.generate)
    generate_many = _waits(calls.generate_many)
    classify = _waits(calls.classify)
    tokenize = _waits(calls.tokenize)

    train_prompt = _waits(training_calls.train_prompt)
    train_lora = _waits(training_calls.train_lora)
    train_head = _waits(training_calls.train_head)
    train_full = _waits(training_calls.train_full)

    training = _waits(training_calls.training)
    trainings = _waits(training_calls.trainings)
    training_metrics = _waits(training_calls.training_metrics)
    cancel_training = _waits(training_calls.cancel_training)
    resume_training = _waits(training_calls.resume_training)

    def stream(self, model_id: str, text: str, **parameters: Any) -> Iterator[GeneratedChunk]:
        """Text from a model as it is made. Ending the iteration early frees the server's row.

        Args:
            model_id: Which model.
            text: What it reads.
            **parameters: As for ``generate``.
        """
        call = calls.stream(model_id, text, **parameters)
        decoder = EventDecoder()
        with named_errors(self.url), self._http.stream(**request_of(call)) as response:
            if response.is_error:
                response.read()
                raise error_from_response(response)
            for received in response.iter_bytes():
                for event in decoder.feed(received):
                    yield chunk_of(event)

    def wait(
        self,
        training_id: str,
        *,
        on_progress: ProgressCallback | None = None,
        poll_seconds: float = POLL_SECONDS,
        timeout_seconds: float | None = None,
    ) -> TrainingStatus:
        """Wait until a training has completed.

        Args:
            training_id: Which one.
            on_progress: Called after every look; gets the metrics that are new.
            poll_seconds: Time between two looks.
            timeout_seconds: Give up waiting after this; None never does. The training goes on.

        Raises:
            TrainingFailedError: If it ended ERRORED, with the server's reasons.
            CancelledError: If somebody cancelled it.
            TimeoutError: If it has not ended in time.
        """
        watch = Watch(training_id, on_progress=on_progress, timeout_seconds=timeout_seconds)
        while True:
            status = self.training(training_id)
            metrics = self.training_metrics(training_id) if watch.wants_metrics else []
            if watch.look(status, metrics):
                return status
            time.sleep(poll_seconds)

    def _send(self, call: Call[Answer]) -> Answer:
        with named_errors(self.url):
            response = self._http.request(**request_of(call))
        return read_answer(call, response)
