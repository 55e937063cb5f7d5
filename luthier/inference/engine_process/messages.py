"""What an engine's process and its owner say to each other, as plain data.

A message is a list of operations and a list of blobs; an operation is a list of JSON values whose
first is its name, and refers to a blob by its index. Tensors are blobs in safetensors' format.
Nothing is pickled.

```
    owner -> process                                     process -> owner
    start    model, places, options …                    ready    whether it is rounded
    adapter  key, description                            refused  code, message, retry after
    broken   key, code, message, retry after             step     status, chunks, errors
    head     key                                         answer   number, what was asked, any error
    forget   key                                         lost     key of what it could not receive
    submit   number, request                             log      channel, level, message
    cancel   number                                      alive
    keeps    number, layers                              dead     why
    adapters number
    close
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save

from luthier.data_model.sampling import SamplingParams
from luthier.errors import CapacityError, EngineDownError, LuthierError, error_class
from luthier.inference.base import (
    ClassificationRequest,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Request,
    Token,
)

#: An operation: its name and what it is about.
Operation = list[Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode
_SAMPLING_DEFAULTS = dataclasses.asdict(SamplingParams())
_REASONS = {reason.value: reason for reason in FinishReason}


class Message(NamedTuple):
    """All that one side has to say at one time.

    Args:
        operations: In order.
        blobs: That they refer to.
    """

    operations: list[Operation]
    blobs: Sequence[bytes] = ()


def encode_operation(operation: Operation) -> str:
    """An operation as JSON, which makes it independent of what its values become."""
    return _encode(operation)


def send_message(connection: Connection, message: Message) -> None:
    """Write a message; blocks while the other side does not read.

    Args:
        connection: To the other side.
        message: What to say.

    Raises:
        OSError: If the other side is gone.
    """
    send_encoded(connection, [_encode(each) for each in message.operations], message.blobs)


def send_encoded(
    connection: Connection, operations: Sequence[str], blobs: Sequence[bytes] = ()
) -> None:
    """``send_message`` of operations that ``encode_operation`` encoded."""
    connection.send_bytes(f"[[{','.join(operations)}],{len(blobs)}]".encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive_message(connection: Connection) -> Message:
    """Wait for a message.

    Args:
        connection: To the other side.

    Returns:
        What it says.

    Raises:
        EOFError: If the other side is gone.
        OSError: Likewise.
    """
    operations, num_blobs = json.loads(connection.recv_bytes())
    return Message(operations, [connection.recv_bytes() for _ in range(num_blobs)])


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as one blob."""
    named = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob: bytes = save(named)
    return blob


def unpack_tensors(blob: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a blob, on the CPU."""
    tensors: dict[str, torch.Tensor] = load(blob)
    return tensors


def encode_request(request: Request, *, adapter_key: str, head_key: str = "") -> list[Any]:
    """A request without its tensors.

    Args:
        request: What to encode.
        adapter_key: Under which the other side knows its adapter; "" for none.
        head_key: Under which it knows the head of a classification.

    Returns:
        JSON values.
    """
    about = [request.input_ids, adapter_key, request.request_id, request.tenant, request.priority]
    if isinstance(request, ClassificationRequest):
        return [*about, head_key]
    sampling = request.sampling
    given = {
        name: value
        for name, default in _SAMPLING_DEFAULTS.items()
        if (value := getattr(sampling, name)) != default
    }
    return [*about, given]


def decode_request(values: Sequence[Any], held: Mapping[str, Any]) -> Request:
    """The request that ``encode_request`` encoded.

    Args:
        values: What it gave.
        held: Adapters and heads by key.

    Returns:
        The request.
    """
    input_ids, adapter_key, request_id, tenant, priority, asked = values
    common: dict[str, Any] = {
        "input_ids": tuple(input_ids),
        "adapter": held[adapter_key] if adapter_key else None,
        "request_id": request_id,
        "tenant": tenant,
        "priority": priority,
    }
    if isinstance(asked, str):
        return ClassificationRequest(head=held[asked], **common)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()
    }
    return GenerationRequest(sampling=SamplingParams(**given), **common)


def encode_chunk(number: int, chunk: GenerationChunk) -> list[Any]:
    """A chunk of the row with this number, as JSON values."""
    values: list[Any] = [
        number,
        chunk.finish_reason.value,
        chunk.text,
        chunk.generated_token_count,
        chunk.input_token_count,
        chunk.seed,
        [(token.token_id, token.text, token.logprob, token.rank) for token in chunk.tokens],
    ]
    if chunk.input_tokens or chunk.scores:  # of the first chunk, if at all
        values.append([dataclasses.astuple(token) for token in chunk.input_tokens])
        values.append(chunk.scores)
    return values


def decode_chunk(values: Sequence[Any]) -> tuple[int, GenerationChunk]:
    """The number and the chunk that ``encode_chunk`` encoded."""
    number, reason, text, num_generated, num_input, seed, tokens, *rest = values
    chunk = GenerationChunk(
        text=text,
        tokens=tuple(Token(*token) for token in tokens),
        input_tokens=tuple(Token(*token) for token in rest[0]) if rest else (),
        finish_reason=_REASONS[reason],
        generated_token_count=num_generated,
        input_token_count=num_input,
        seed=seed,
        scores=tuple(rest[1]) if rest else (),
    )
    return number, chunk


def encode_error(error: LuthierError) -> list[Any]:
    """An error as JSON values: its code, what it says, and when to try again."""
    if isinstance(error, CapacityError | EngineDownError):
        return [error.code, str(error), error.retry_after_seconds]
    return [error.code, str(error), None]


def decode_error(values: Sequence[Any]) -> LuthierError:
    """An error of the class that ``encode_error`` was given."""
    code, message, retry_after = values
    kind = error_class(code)
    if issubclass(kind, CapacityError | EngineDownError):
        return kind(message, retry_after_seconds=retry_after)
    return kind(message)
