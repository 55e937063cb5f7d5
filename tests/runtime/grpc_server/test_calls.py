"""What every rpc has in common, without a server."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2

from luthier.errors import CapacityError, InvalidInputError
from luthier.runtime.grpc_server.calls import (
    ERROR_CODE_KEY,
    RETRY_AFTER_KEY,
    Call,
    server_streaming,
    unary,
)


class Aborted(Exception):
    pass


class FakeContext:
    """The seam to gRPC: notes what is written and how the call is refused."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.refusal = None

    def invocation_metadata(self):
        return (("mm-model-id", "echo"),)

    async def write(self, message: bytes) -> None:
        self.written.append(message)

    async def abort(self, code, details, trailing):
        self.refusal = (code, details, dict(trailing))
        raise Aborted


@pytest.fixture
def kind():
    return wrappers_pb2.StringValue.DESCRIPTOR


async def test_a_message_goes_in_and_one_comes_out(kind):
    async def answer(call: Call):
        assert call.model_id == "echo"
        return call.message

    handler = unary(kind, answer)
    raw = b"\n\x02hi"
    assert await handler.unary_unary(raw, FakeContext()) == raw


async def test_a_full_queue_says_when_to_come_back(kind):
    async def answer(call: Call):
        raise CapacityError("full", retry_after_seconds=7)

    context = FakeContext()
    with pytest.raises(Aborted):
        await unary(kind, answer).unary_unary(b"", context)
    _, details, trailing = context.refusal
    assert details == "full"
    assert (trailing[ERROR_CODE_KEY], trailing[RETRY_AFTER_KEY]) == ("capacity", "7")


async def test_a_stream_is_closed_when_writing_fails(kind):
    closed = []

    async def answer(call: Call):
        try:
            while True:
                yield call.message
        finally:
            closed.append(True)

    class Gone(FakeContext):
        async def write(self, message: bytes) -> None:
            raise ConnectionError("client is gone")

    with pytest.raises(Aborted):
        await server_streaming(kind, answer).unary_stream(b"", Gone())
    assert closed == [True]


def test_a_call_without_a_model_is_refused():
    with pytest.raises(InvalidInputError, match="mm-model-id"):
        _ = Call(None, {}).model_id
