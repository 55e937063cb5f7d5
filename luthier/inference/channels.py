"""The way from an engine's thread to whoever reads a stream, blocking or on an event loop."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from luthier.errors import ConflictError, LuthierError
from luthier.inference.base import GenerationChunk, TokenStream

Item = GenerationChunk | LuthierError


class Outbox(ABC):
    """A reader of many channels at once."""

    @abstractmethod
    def collect(self, channels: Sequence[Channel]) -> None:
        """Take what lies in channels; called in the thread that put it, once for each delivery.

        Args:
            channels: Those that got something; ``Channel.take_all`` gives it, ``Channel.tag`` says
                whose it is.
        """


class Channel:
    """One row's queue of chunks: an engine puts, one reader takes.

    Unbounded, which is safe because a row ends after ``max_new_tokens``. An engine must put exactly
    one last item: a chunk that ``is_last``, or an error.

    Args:
        on_cancel: Called once when the reader gives up before the end: from any thread, and at any
            moment, because the garbage collector may drop a reader.
    """

    def __init__(self, on_cancel: Callable[[], None] = lambda: None) -> None:
        self._on_cancel = on_cancel
        self._items: deque[Item] = deque()
        self._condition = threading.Condition()
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._outbox: Outbox | None = None
        self.tag = 0
        self.is_cancelled = False
        self.is_ended = False

    def cancel(self) -> None:
        """Mark the row as not wanted; no effect after its end or the second time."""
        with self._condition:
            if self.is_cancelled or self.is_ended:
                return
            self.is_cancelled = True
        self._on_cancel()

    def fail(self, error: LuthierError) -> None:
        """End it in place of its engine, which finds it cancelled if it ever looks again.

        Args:
            error: What the reader gets; no effect after the end.
        """
        deliver([(self, error)])
        self.is_cancelled = True

    def take(self) -> Item:
        """Wait for the next item, blocking the thread."""
        with self._condition:
            while not self._items:
                self._condition.wait()
            return self._items.popleft()

    async def take_async(self) -> Item:
        """Wait for the next item on the running loop."""
        loop = asyncio.get_running_loop()
        while True:
            with self._condition:
                if self._items:
                    return self._items.popleft()
                future = loop.create_future()
                self._sleeper = (loop, future)
            await future

    def take_all(self) -> list[Item]:
        """What has come by now, if anything."""
        with self._condition:
            items = list(self._items)
            self._items.clear()
            return items

    def forward_to(self, outbox: Outbox, tag: int) -> None:
        """Hand over to a reader that never waits: from now on it is told of each delivery."""
        with self._condition:
            self.tag = tag
            self._outbox = outbox
        outbox.collect([self])

    def put(self, item: Item) -> asyncio.AbstractEventLoop | Outbox | None:
        """Add an item; return the loop or the outbox that must be told, if there is one."""
        with self._condition:
            if self.is_ended:
                return None
            self._items.append(item)
            self.is_ended = isinstance(item, LuthierError) or item.is_last
            if self._outbox is not None:
                return self._outbox
            self._condition.notify()
            return self._sleeper[0] if self._sleeper else None

    def wake(self) -> None:
        """Wake the reader that sleeps on this thread's loop."""
        with self._condition:
            sleeper, self._sleeper = self._sleeper, None
        if sleeper and not sleeper[1].done():
            sleeper[1].set_result(None)


def deliver(items: Iterable[tuple[Channel, Item]]) -> None:
    """Put what one step made; each reader that waits is told once, however many its rows."""
    told: dict[asyncio.AbstractEventLoop | Outbox, list[Channel]] = {}
    for channel, item in items:
        reader = channel.put(item)
        if reader is not None:
            told.setdefault(reader, []).append(channel)
    for reader, channels in told.items():
        if isinstance(reader, Outbox):
            reader.collect(channels)
            continue
        try:
            reader.call_soon_threadsafe(_wake_all, channels)
        except RuntimeError:  # the loop is closed: nobody will ever read these
            for channel in channels:
                channel.cancel()


def _wake_all(channels: list[Channel]) -> None:
    for channel in channels:
        channel.wake()


class ChannelStream(TokenStream):
    """The reader's end of a channel. Dropping it, or leaving its loop early, cancels the row.

    Args:
        channel: Shared with the engine.
        keep_alive: Something that must live as long as anybody reads, such as the base model.
    """

    def __init__(self, channel: Channel, *, keep_alive: object = None) -> None:
        self._channel = channel
        self._keep_alive = keep_alive
        self._is_taken = False

    def __iter__(self) -> Iterator[GenerationChunk]:
        self._take_once()
        return self._chunks()

    def __aiter__(self) -> AsyncIterator[GenerationChunk]:
        self._take_once()
        return self._chunks_async()

    def cancel(self) -> None:
        """Ask the engine to drop this row."""
        self._channel.cancel()

    def forward_to(self, outbox: Outbox, *, tag: int) -> None:
        """Let an outbox read this stream.

        Args:
            outbox: Is told of all that has come and will come.
            tag: Under which it knows the stream.

        Raises:
            ConflictError: If somebody reads it already.
        """
        self._take_once()
        self._channel.forward_to(outbox, tag)

    def __del__(self) -> None:
        self._channel.cancel()

    def _take_once(self) -> None:
        if self._is_taken:
            raise ConflictError("this stream has been read already; a stream can be read once")
        self._is_taken = True

    def _chunks(self) -> Iterator[GenerationChunk]:
        try:
            is_last = False
            while not is_last:
                chunk = _chunk_or_raise(self._channel.take())
                is_last = chunk.is_last
                yield chunk
        finally:
            self._channel.cancel()

    async def _chunks_async(self) -> AsyncIterator[GenerationChunk]:
        try:
            is_last = False
            while not is_last:
                chunk = _chunk_or_raise(await self._channel.take_async())
                is_last = chunk.is_last
                yield chunk
        finally:
            self._channel.cancel()


def _chunk_or_raise(item: Item) -> GenerationChunk:
    if isinstance(item, LuthierError):
        raise item
    return item
