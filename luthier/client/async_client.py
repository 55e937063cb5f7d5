"""The client for code on an event loop; method for method the same as ``Client``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from luthier.client import calls
from luthier.client.calls import Call, Records, ServerFile
from luthier.client.error_mapping import error_from_response
from luthier.client.results import (
    GeneratedChunk,
    GeneratedText,
    LabelScore,
    ModelInfo,
    Tokenization,
    TrainingJob,
    TrainingMetric,
    TrainingStatus,
)
from luthier.client.sse import EventDecoder
from luthier.client.transport import (
    ANSWER_SECONDS,
    DEFAULT_URL,
    POLL_SECONDS,
    ProgressCallback,
    chunk_of,
    completed,
    http_options,
    named_errors,
    read_answer,
    request_of,
)

Answer = TypeVar("Answer")


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

    async def health(self) -> str:
        """``OK`` while the server can serve."""
        return await self._send(calls.health())

    async def version(self) -> dict[str, Any]:
        """Versions of the server's packages."""
        return await self._send(calls.version())

    async def models(self) -> list[ModelInfo]:
        """Every model that the server has."""
        return await self._send(calls.models())

    async def deploy(self, model_id: str, folder: Path) -> ModelInfo:
        """Send a saved model's folder to the server, which serves it as ``model_id``."""
        return await self._send(calls.deploy(model_id, folder))

    async def undeploy(self, model_id: str) -> None:
        """Stop serving a model and delete its folder on the server."""
        await self._send(calls.undeploy(model_id))

    async def generate(self, model_id: str, text: str, **parameters: Any) -> GeneratedText:
        """Text from a model, whole.

        Args:
            model_id: Which model.
            text: What it reads.
            **parameters: Fields of ``luthier.data_model.sampling.SamplingParams``.
        """
        return await self._send(calls.generate(model_id, text, parameters))

    async def generate_many(
        self, model_id: str, text: str, n: int, **parameters: Any
    ) -> list[GeneratedText]:
        """Several answers to one text, each with the seed that gives it again.

        Args:
            model_id: Which model.
            text: What it reads.
            n: How many; more than one only with ``decoding_method="SAMPLING"``.
            **parameters: As for ``generate``.
        """
        return await self._send(calls.generate_many(model_id, text, n, parameters))

    async def stream(
        self, model_id: str, text: str, **parameters: Any
    ) -> AsyncIterator[GeneratedChunk]:
        """Text from a model as it is made. Ending the iteration early frees the server's row.

        Args:
            model_id: Which model.
            text: What it reads.
            **parameters: As for ``generate``.
        """
        call = calls.stream(model_id, text, parameters)
        decoder = EventDecoder()
        with named_errors(self.url):
            async with self._http.stream(**request_of(call)) as response:
                if response.is_error:
                    await response.aread()
                    raise error_from_response(response)
                async for received in response.aiter_bytes():
                    for event in decoder.feed(received):
                        yield chunk_of(event)

    async def classify(self, model_id: str, text: str) -> tuple[LabelScore, ...]:
        """The classes of a text with their probabilities, the most probable first."""
        return await self._send(calls.classify(model_id, text))

    async def tokenize(self, model_id: str, text: str) -> Tokenization:
        """Count the tokens of a text as a model sees it."""
        return await self._send(calls.tokenize(model_id, text))

    async def train_prompt(
        self,
        model_name: str,
        *,
        base_model: str,
        train_data: Records | ServerFile,
        tuning_config: dict[str, Any],
        validation_data: Records | ServerFile | None = None,
        **parameters: Any,
    ) -> TrainingJob:
        """Start tuning a soft prompt; returns at once.

        Args:
            model_name: Id of the tuned model.
            base_model: Name of the base model, as the server resolves it.
            train_data: Records with ``input`` and ``output``, or a file on the server.
            tuning_config: ``num_virtual_tokens``, ``prompt_tuning_init_method`` …
            validation_data: Measured after each epoch; None for none.
            **parameters: ``num_epochs``, ``learning_rate``, ``verbalizer`` …, by their wire names.
        """
        return await self._send(
            calls.train(
                calls.PROMPT_TUNING,
                model_name,
                base_model=base_model,
                train_data=train_data,
                validation_data=validation_data,
                parameters={"tuning_config": tuning_config, **parameters},
            )
        )

    async def train_lora(
        self,
        model_name: str,
        *,
        base_model: str,
        train_data: Records | ServerFile,
        validation_data: Records | ServerFile | None = None,
        **parameters: Any,
    ) -> TrainingJob:
        """Start tuning a LoRA; returns at once.

        Args:
            model_name: Id of the tuned model.
            base_model: Name of the base model, as the server resolves it.
            train_data: Records with ``input`` and ``output``, or a file on the server.
            validation_data: Measured after each epoch; None for none.
            **parameters: ``rank``, ``alpha``, ``num_epochs``, ``learning_rate`` …, by their wire
                names.
        """
        return await self._send(
            calls.train(
                calls.LORA_TUNING,
                model_name,
                base_model=base_model,
                train_data=train_data,
                validation_data=validation_data,
                parameters=parameters,
            )
        )

    async def train_head(
        self,
        model_name: str,
        *,
        base_model: str,
        train_data: Records | ServerFile,
        validation_data: Records | ServerFile | None = None,
        **parameters: Any,
    ) -> TrainingJob:
        """Start tuning a classification head; returns at once.

        Args:
            model_name: Id of the tuned model.
            base_model: Name of the base model, as the server resolves it.
            train_data: Records with ``text`` and ``labels``, or a file on the server.
            validation_data: Measured after each epoch; None for none.
            **parameters: ``labels``, ``use_lora``, ``num_epochs`` …, by their wire names.
        """
        return await self._send(
            calls.train(
                calls.HEAD_TUNING,
                model_name,
                base_model=base_model,
                train_data=train_data,
                validation_data=validation_data,
                parameters=parameters,
            )
        )

    async def train_full(
        self,
        model_name: str,
        *,
        base_model: str,
        train_data: Records | ServerFile,
        validation_data: Records | ServerFile | None = None,
        **parameters: Any,
    ) -> TrainingJob:
        """Start fine-tuning every weight of a copy of the base model; returns at once.

        Args:
            model_name: Id of the tuned model.
            base_model: Name of the base model, as the server resolves it.
            train_data: Records with ``input`` and ``output``, or a file on the server.
            validation_data: Likewise; its loss is measured.
            **parameters: ``num_epochs``, ``lr``, ``batch_size`` …, by their wire names.
        """
        return await self._send(
            calls.train(
                calls.FULL_FINE_TUNING,
                model_name,
                base_model=base_model,
                train_data=train_data,
                validation_data=validation_data,
                parameters=parameters,
            )
        )

    async def training(self, training_id: str) -> TrainingStatus:
        """Where a training stands."""
        return await self._send(calls.training(training_id))

    async def trainings(self) -> list[TrainingStatus]:
        """Every training that the server knows."""
        return await self._send(calls.trainings())

    async def training_metrics(self, training_id: str) -> list[TrainingMetric]:
        """What a training has measured so far, oldest first."""
        return await self._send(calls.training_metrics(training_id))

    async def cancel_training(self, training_id: str) -> TrainingStatus:
        """Ask a training to stop; its state becomes CANCELED."""
        return await self._send(calls.cancel_training(training_id))

    async def resume_training(self, training_id: str) -> TrainingStatus:
        """Go on with a training that was cancelled or failed, from its last checkpoint."""
        return await self._send(calls.resume_training(training_id))

    async def wait(
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
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        num_seen = 0
        while True:
            status = await self.training(training_id)
            if on_progress is not None:
                metrics = await self.training_metrics(training_id)
                on_progress(status, metrics[num_seen:])
                num_seen = len(metrics)
            if status.state.is_final:
                return completed(status)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"training '{training_id}' still is {status.state}")
            await asyncio.sleep(poll_seconds)

    async def _send(self, call: Call[Answer]) -> Answer:
        with named_errors(self.url):
            response = await self._http.request(**request_of(call))
        return read_answer(call, response)
