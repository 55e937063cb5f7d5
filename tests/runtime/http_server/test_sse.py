"""Server-sent events as existing clients read them."""

from __future__ import annotations

import asyncio
import json

from luthier.data_model.generation import GeneratedTextStreamResult
from luthier.errors import EngineError
from luthier.runtime.http_server.sse import UNCUT, SseResponse


def piece(text: str) -> GeneratedTextStreamResult:
    return GeneratedTextStreamResult(generated_text=text)


class Wire:
    """The seam to the server: keeps what is sent; the client goes away after ``num_messages``."""

    def __init__(self, num_messages: int | None = None) -> None:
        self.sent: list[dict] = []
        self.num_messages = num_messages
        self.gone = asyncio.Event()

    async def send(self, message: dict) -> None:
        self.sent.append(message)
        if self.num_messages is not None and len(self.sent) > self.num_messages:
            self.gone.set()

    async def receive(self) -> dict:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def answer(*texts: str, error: Exception | None = None, closed: list | None = None):
    try:
        for text in texts:
            await asyncio.sleep(0)
            yield piece(text)
        if error is not None:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


async def test_each_result_is_one_message_of_one_data_line():
    wire = Wire()
    await SseResponse(piece("a\nb"), answer("\u2028"))({}, wire.receive, wire.send)
    messages = wire.body.split("\n\n")
    assert messages.pop() == ""
    assert all(message.startswith("data: ") and "\n" not in message for message in messages)
    assert [json.loads(message[6:])["generated_text"] for message in messages] == [
        "a\nb",
        "\u2028",
    ]
    head = wire.sent[0]
    assert head["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in head["headers"]
    assert wire.sent[-1]["more_body"] is False


async def test_an_error_on_the_way_is_a_message_too():
    wire = Wire()
    results = answer(error=EngineError("the row failed"))
    await SseResponse(piece("a"), results)({}, wire.receive, wire.send)
    last = json.loads(wire.body.strip().split("\n\n")[-1][6:])
    assert (last["details"], last["code"], last["error"]) == (
        "the row failed",
        500,
        "engine_failed",
    )
    assert wire.sent[-1]["more_body"] is False


async def test_a_client_that_goes_away_closes_the_results():
    closed: list[bool] = []
    wire = Wire(num_messages=3)
    results = answer(*["x"] * 100_000, closed=closed)
    await asyncio.wait_for(SseResponse(piece("a"), results)({}, wire.receive, wire.send), 10)
    assert closed == [True]
    assert len(wire.sent) < 1000


def test_what_old_clients_cut_off_an_error_is_white_space():
    assert len(UNCUT) == len("data: ") and not UNCUT.strip()
