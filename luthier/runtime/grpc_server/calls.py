"""What every rpc has in common: parse, answer, encode, and tell errors apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import alog
import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from luthier.data_model.caller import acting_for
from luthier.errors import InvalidInputError
from luthier.runtime.callers import caller_of
from luthier.runtime.errors import problem_of
from luthier.runtime.messages import parse

log = alog.use_channel(__name__)

#: Metadata of a request that names the model.
MODEL_ID_KEY = "mm-model-id"
#: Trailing metadata of a failed call: the stable word of the error's class, and its id in the log.
ERROR_CODE_KEY = "luthier-error-code"
ERROR_ID_KEY = "luthier-error-id"
RETRY_AFTER_KEY = "retry-after"

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@dataclass(frozen=True)
class Call:
    """A request, parsed.

    Args:
        message: Its message.
        metadata: Its metadata, the last value per key.
    """

    message: Any
    metadata: dict[str, str]

    @property
    def model_id(self) -> str:
        """The model that the caller chose.

        Raises:
            InvalidInputError: If the metadata names none.
        """
        model_id = self.metadata.get(MODEL_ID_KEY, "")
        if not model_id:
            raise InvalidInputError(f"Please provide model_id in metadata, as {MODEL_ID_KEY!r}")
        return model_id


Answer = Callable[[Call], Awaitable[Any]]
StreamAnswer = Callable[[Call], AsyncGenerator[Any]]


def unary(kind: Descriptor, answer: Answer) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler for one message in, one out.

    Args:
        kind: The request's message.
        answer: Gives caikit's data object, or a protobuf message.

    Returns:
        What a server registers. A caller that goes away cancels the task of ``answer``.
    """

    async def handle(raw: bytes, context: Context) -> bytes:
        try:
            call = _call(kind, raw, context)
            with acting_for(caller_of(call.metadata)):
                return _encoded(await answer(call))
        except Exception as error:  # noqa: BLE001  the request handler
            await _refuse(context, error)

    return grpc.unary_unary_rpc_method_handler(handle)


def server_streaming(kind: Descriptor, answer: StreamAnswer) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler for one message in, many out.

    Args:
        kind: The request's message.
        answer: Yields caikit's data objects.

    Returns:
        What a server registers. A caller that goes away closes the generator.
    """

    async def handle(raw: bytes, context: Context) -> None:
        try:
            call = _call(kind, raw, context)
            with acting_for(caller_of(call.metadata)):
                async with aclosing(answer(call)) as results:
                    async for result in results:
                        await context.write(_encoded(result))
        except Exception as error:  # noqa: BLE001  the request handler
            await _refuse(context, error)

    return grpc.unary_stream_rpc_method_handler(handle)


def _call(kind: Descriptor, raw: bytes, context: Context) -> Call:
    metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
    return Call(parse(kind, raw), metadata)


def _encoded(result: Any) -> bytes:
    message = result if isinstance(result, Message) else result.to_proto()
    return message.SerializeToString()


async def _refuse(context: Context, error: Exception) -> NoReturn:
    problem = problem_of(error)
    log.debug("call refused: code=%s error_id=%s", problem.word, problem.error_id)
    trailing = [(ERROR_CODE_KEY, problem.word), (ERROR_ID_KEY, problem.error_id)]
    if problem.retry_after_seconds is not None:
        trailing.append((RETRY_AFTER_KEY, str(problem.retry_after_seconds)))
    await context.abort(problem.status.grpc, problem.details, tuple(trailing))
