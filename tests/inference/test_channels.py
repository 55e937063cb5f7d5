from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence

import pytest

from luthier.errors import ConflictError, EngineError
from luthier.inference.base import FinishReason, GenerationChunk
from luthier.inference.channels import Channel, ChannelStream, Outbox, deliver

LAST = GenerationChunk(text="!", finish_reason=FinishReason.MAX_TOKENS)


def chunk(text: str) -> GenerationChunk:
    return GenerationChunk(text=text)


def make_stream() -> tuple[Channel, ChannelStream, list[str]]:
    cancels: list[str] = []
    channel = Channel(on_cancel=lambda: cancels.append("cancel"))
    return channel, ChannelStream(channel), cancels


def test_chunks_come_in_order_to_a_blocking_reader() -> None:
    channel, stream, cancels = make_stream()
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.extend(c.text for c in stream))
    reader.start()
    for item in (chunk("a"), chunk("b"), LAST):
        deliver([(channel, item)])
    reader.join(60)
    assert texts == ["a", "b", "!"]
    assert cancels == []


async def test_chunks_come_in_order_to_a_loop() -> None:
    channel, stream, cancels = make_stream()

    def produce() -> None:
        for item in (chunk("a"), chunk("b"), LAST):
            deliver([(channel, item)])

    reading = asyncio.create_task(_texts(stream))
    await asyncio.sleep(0)
    await asyncio.to_thread(produce)
    assert await reading == ["a", "b", "!"]
    assert cancels == []


async def _texts(stream: ChannelStream) -> list[str]:
    return [item.text async for item in stream]


async def test_a_step_of_many_rows_wakes_a_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [make_stream() for _ in range(20)]
    reading = [asyncio.create_task(_texts(stream)) for _, stream, _ in pairs]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    original = loop.call_soon_threadsafe

    def counting(*args: object, **kwargs: object) -> asyncio.Handle:
        calls.append(args)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    threading.Thread(target=deliver, args=([(channel, LAST) for channel, _, _ in pairs],)).start()
    assert await asyncio.gather(*reading) == [["!"]] * 20
    assert len(calls) == 1


def test_an_error_is_raised_after_the_chunks_before_it() -> None:
    channel, stream, _ = make_stream()
    deliver([(channel, chunk("a")), (channel, EngineError("broken"))])
    chunks = iter(stream)
    assert next(chunks).text == "a"
    with pytest.raises(EngineError, match="broken"):
        next(chunks)


def test_a_stream_is_read_once() -> None:
    channel, stream, _ = make_stream()
    deliver([(channel, LAST)])
    assert [item.text for item in stream] == ["!"]
    with pytest.raises(ConflictError):
        iter(stream)


def test_leaving_the_loop_early_cancels_once() -> None:
    channel, stream, cancels = make_stream()
    deliver([(channel, chunk("a"))])
    chunks = iter(stream)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    stream.cancel()
    assert cancels == ["cancel"]


def test_a_dropped_stream_is_cancelled() -> None:
    channel, stream, cancels = make_stream()
    del stream
    gc.collect()
    assert cancels == ["cancel"]
    assert channel.is_cancelled


async def test_a_cancelled_reader_cancels_the_row() -> None:
    channel, stream, cancels = make_stream()
    reading = asyncio.create_task(_texts(stream))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    deliver([(channel, LAST)])
    assert cancels == ["cancel"]


def test_cancelling_after_the_end_does_nothing() -> None:
    channel, stream, cancels = make_stream()
    deliver([(channel, LAST)])
    stream.cancel()
    assert cancels == []
    assert not channel.is_cancelled


def test_nothing_follows_the_last_chunk() -> None:
    channel, stream, _ = make_stream()
    deliver([(channel, LAST), (channel, chunk("late"))])
    assert [item.text for item in stream] == ["!"]


def test_a_reader_whose_loop_was_closed_is_given_up() -> None:
    channel, stream, cancels = make_stream()
    loop = asyncio.new_event_loop()
    chunks = stream.__aiter__()
    reading = loop.create_task(chunks.__anext__())  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0))
    reading.cancel()
    loop.close()
    deliver([(channel, chunk("a"))])
    assert cancels == ["cancel"]
    del reading


class Collecting(Outbox):
    """Remembers what each delivery brought, by tag."""

    def __init__(self) -> None:
        self.deliveries: list[list[tuple[int, str]]] = []

    def collect(self, channels: Sequence[Channel]) -> None:
        self.deliveries.append(
            [
                (channel.tag, item.text)
                for channel in channels
                for item in channel.take_all()
                if isinstance(item, GenerationChunk)
            ]
        )


def test_an_outbox_is_told_once_of_all_that_a_step_brought() -> None:
    outbox = Collecting()
    pairs = [make_stream() for _ in range(3)]
    for tag, (_, stream, _) in enumerate(pairs):
        stream.forward_to(outbox, tag=tag)
    assert outbox.deliveries == [[], [], []]
    deliver((channel, chunk(f"step {tag}")) for tag, (channel, _, _) in enumerate(pairs))
    assert outbox.deliveries[3:] == [[(0, "step 0"), (1, "step 1"), (2, "step 2")]]
    deliver([(pairs[1][0], chunk("a")), (pairs[1][0], LAST)])
    assert outbox.deliveries[4:] == [[(1, "a"), (1, "!")]]


def test_an_outbox_gets_what_came_before_it_and_nobody_else_reads() -> None:
    outbox = Collecting()
    channel, stream, cancels = make_stream()
    deliver([(channel, chunk("early")), (channel, LAST)])
    stream.forward_to(outbox, tag=7)
    assert outbox.deliveries == [[(7, "early"), (7, "!")]]
    with pytest.raises(ConflictError, match="read already"):
        stream.forward_to(outbox, tag=8)
    with pytest.raises(ConflictError, match="read already"):
        iter(stream)
    assert cancels == []


def test_one_that_fails_ends_with_its_error_whatever_its_engine_still_puts() -> None:
    channel, stream, cancels = make_stream()
    deliver([(channel, chunk("a"))])
    channel.fail(EngineError("it hangs"))
    deliver([(channel, LAST)])
    texts: list[str] = []
    with pytest.raises(EngineError, match="it hangs"):
        texts.extend(item.text for item in stream)
    assert texts == ["a"]
    assert channel.is_cancelled, "so that an engine that comes back drops the row"
    assert cancels == []


def test_one_that_has_ended_cannot_fail() -> None:
    channel, stream, _ = make_stream()
    deliver([(channel, LAST)])
    channel.fail(EngineError("too late"))
    assert [item.text for item in stream] == ["!"]
