"""The contract between whoever wants text and an engine that makes it.

An engine serves one base model and any number of adapters on it. Nothing above this file may know
whether the engine runs in this thread, this process or elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import torch

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SamplingParams


class FinishReason(Enum):
    """Why a sequence ended; names and numbers are those of the wire."""

    NOT_FINISHED = 0
    MAX_TOKENS = 1
    EOS_TOKEN = 2
    CANCELLED = 3
    TIME_LIMIT = 4
    STOP_SEQUENCE = 5
    TOKEN_LIMIT = 6
    ERROR = 7


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate from: token ids in, no text.

    Args:
        input_ids: Prompt tokens, [T]; the encoder's input for a seq2seq base. May be empty only
            when ``adapter`` brings virtual tokens.
        sampling: Already validated parameters.
        adapter: The tuned delta, or None for the bare base.
        request_id: For logs; not unique by contract.
        tenant: On whose behalf; tenants share an engine fairly, however much one asks for.
        priority: Among the requests of the same tenant; more is sooner.
    """

    input_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: Adapter | None = None
    request_id: str = ""
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True, eq=False)
class ClassificationRequest:
    """What to classify: a row that ends once its prompt was read, with a score for each class.

    Args:
        input_ids: Tokens of the text, [T]; not empty unless the model has a token to begin with, or
            ``adapter`` brings virtual ones.
        head: Weight of the linear layer on the last token's hidden state, [N, D], on the CPU;
            N classes.
        adapter: The tuned delta below the head, or None for the bare base.
        request_id: For logs; not unique by contract.
        tenant: As in ``GenerationRequest``.
        priority: As in ``GenerationRequest``.
    """

    input_ids: tuple[int, ...]
    head: torch.Tensor
    adapter: Adapter | None = None
    request_id: str = ""
    tenant: str = ""
    priority: int = 0


#: What an engine accepts.
Request: TypeAlias = GenerationRequest | ClassificationRequest


@dataclass(frozen=True)
class Token:
    """One token, as reported.

    Args:
        token_id: Its id in the base model's vocabulary.
        text: The vocabulary's own piece for it (``convert_ids_to_tokens``).
        logprob: Natural log of its probability under the unprocessed logits, or None where it was
            not asked for or cannot exist (the first prompt token).
        rank: 1 for the likeliest token, or None likewise.
    """

    token_id: int
    text: str
    logprob: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class GenerationChunk:
    """What one step adds to one stream.

    Joining ``text`` over all chunks gives the generated text (never the prompt) exactly; a chunk
    may carry a token and no text yet (half of a UTF-8 character, the start of a stop sequence).
    The last chunk, and only it, has a ``finish_reason`` other than NOT_FINISHED. A classification
    is one chunk without text, which ends with MAX_TOKENS: none were asked for.

    Args:
        text: Text that can no longer change.
        tokens: Generated tokens of this chunk, EOS included; usually one.
        input_tokens: In the first chunk, the prompt's tokens if they were asked for.
        finish_reason: NOT_FINISHED until the last chunk.
        generated_token_count: Generated tokens so far, EOS included.
        input_token_count: Prompt tokens after truncation, virtual tokens not counted.
        seed: The seed in use, given or drawn; None under GREEDY without one.
        scores: Of a classification, one for each class: finite, before any softmax.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    input_tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason = FinishReason.NOT_FINISHED
    generated_token_count: int = 0
    input_token_count: int = 0
    seed: int | None = None
    scores: tuple[float, ...] = ()

    @property
    def is_last(self) -> bool:
        """True for the chunk that ends its stream."""
        return self.finish_reason is not FinishReason.NOT_FINISHED


class TokenStream(ABC):
    """The answer to one request, as it comes. Iterate it once: with ``for`` or ``async for``."""

    @abstractmethod
    def __iter__(self) -> Iterator[GenerationChunk]:
        """Yield chunks, blocking the calling thread between them.

        Returns:
            An iterator that ends after the last chunk.

        Raises:
            LuthierError: What ended this row, if its finish reason would be ERROR. Other rows
                are not affected.
        """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[GenerationChunk]:
        """Yield chunks on the running event loop; no thread waits meanwhile.

        Returns:
            An iterator that ends after the last chunk.

        Raises:
            LuthierError: As for ``__iter__``.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Ask the engine to drop this row; frees it within one step. Safe from any thread, twice,
        and after the end. The stream then ends with finish reason CANCELLED."""


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot for health checks and metrics.

    Args:
        is_healthy: False once the engine can serve nobody any more.
        num_running: Rows that hold memory.
        num_waiting: Rows accepted and not started.
        detail: Why it is not healthy, else "".
    """

    is_healthy: bool
    num_running: int = 0
    num_waiting: int = 0
    detail: str = field(default="")


@dataclass(frozen=True)
class AdapterStatus:
    """What an engine has of the adapters that it keeps, for metrics.

    Args:
        num_on_device: Adapters that steps can use now.
        device_bytes: What they take.
        num_on_host: Adapters kept in host memory beside the device.
        host_bytes: What they take.
        num_loads: Adapters brought to the device so far, repeatedly counted.
        num_hits: Requests so far whose adapter was there when they came.
        num_dropped: Adapters that made room for others so far.
        on_device: What messages call those on the device, the least recently used first.
    """

    num_on_device: int = 0
    device_bytes: int = 0
    num_on_host: int = 0
    host_bytes: int = 0
    num_loads: int = 0
    num_hits: int = 0
    num_dropped: int = 0
    on_device: tuple[str, ...] = ()


class Engine(ABC):
    """Generates and classifies for one base model.

    Attributes:
        base_model_name: Whose.
        is_rounded: Whether it multiplies by other numbers than the model's own, to be quicker.
    """

    base_model_name: str = ""
    is_rounded: bool = False

    @abstractmethod
    def submit(self, request: Request) -> TokenStream:
        """Accept a request; returns at once. Thread-safe.

        Args:
            request: What to generate from, or to classify.

        Returns:
            Its stream. Dropping it, or leaving its iteration early, cancels the row.

        Raises:
            InvalidInputError: If the prompt does not fit the model's context, or a head not its
                hidden states, naming both.
            NotSupportedError: For a classification by a model that is not causal.
            CapacityError: If the waiting queue is full.
            EngineError: If the engine is closed or dead.
        """

    def keeps_deltas(self, adapter: Adapter) -> bool:
        """Whether the engine needs nothing of an adapter but what it does to layers, once, which it
        keeps as long as it has room. Changes nothing; thread-safe.

        Args:
            adapter: Of a request to come.

        Returns:
            False if each of the adapter's requests needs its tensors.
        """
        return False

    @abstractmethod
    def status(self) -> EngineStatus:
        """How the engine is doing. Changes nothing; thread-safe."""

    def adapter_status(self) -> AdapterStatus | None:
        """Which adapters it keeps, and how often it had to fetch them. Changes nothing;
        thread-safe; may take seconds.

        Returns:
            None if it keeps none, or cannot tell now.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """End every stream with CANCELLED and free the engine's memory. Idempotent."""
