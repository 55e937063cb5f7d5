"""Adapters where the engine needs them, within a number of bytes.

```
    disk ──► host memory ──► device: the tables that steps read
      a request pins its adapter on the device until it ends; what nobody pins is dropped,
      the least recently used first, when room is needed
```

One thread copies, and others read for it, so a cold adapter delays only its own requests, and one
that cannot be read in time only them. On a CPU the device is the host's memory, and there is no
copy between.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import alog

from luthier.adapters.base import Adapter
from luthier.errors import (
    CapacityError,
    ConflictError,
    EngineDownError,
    EngineError,
    LuthierError,
    ReplacedError,
)
from luthier.inference.base import AdapterStatus
from luthier.inference.deltas.adapter_readers import AdapterReaders, Reading
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.host_deltas import HostDeltas
from luthier.inference.deltas.layer_changes import LayerChanges

log = alog.use_channel(__name__)

#: How long ``close`` waits for threads, in seconds.
_CLOSE_SECONDS = 10.0
#: How long whoever is refused shall wait: the disk has been waited for many times that already.
_RETRY_AFTER_SECONDS = 10

#: Told the error that kept an adapter away, or None when it has come.
WhenReady = Callable[[LuthierError | None], None]


class Pin:
    """One request's hold on an adapter; ``release`` it once the request has ended.

    Args:
        pool: Where.
        key: The adapter's.
        when_ready: Called if the adapter was not there at once.
    """

    def __init__(self, pool: AdapterPool, key: str, when_ready: WhenReady) -> None:
        self.key = key
        self.when_ready = when_ready
        self.is_ready = False
        self._pool: AdapterPool | None = pool

    def release(self) -> None:
        """Let the adapter go, whether it has come or not. Idempotent, thread-safe."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._release(self)


@dataclass
class _Entry:
    """An adapter on the device, or on its way."""

    adapter: Adapter | None
    label: str
    num_bytes: int = 0
    pins: set[Pin] = field(default_factory=set)
    is_ready: bool = False


class AdapterPool:
    """Brings adapters into the tables and takes them out again. Thread-safe.

    Args:
        tables: Of the engine's model; this is their only writer.
        max_device_bytes: Of all adapters in the tables.
        max_host_bytes: Of adapters that were read once and are kept in host memory for the next
            time; of no use, and not used, where the device is the CPU.
        max_load_seconds: Longest that an adapter may take to be read; 0 is for ever. Who waits for
            one that takes longer gets ``EngineDownError``; others are read meanwhile.
    """

    def __init__(
        self,
        tables: DeltaTables,
        *,
        max_device_bytes: int,
        max_host_bytes: int = 0,
        max_load_seconds: float = 0.0,
    ) -> None:
        self._tables = tables
        self._max_bytes = max_device_bytes
        self._num_bytes = 0
        self._num_loads = self._num_hits = self._num_dropped = 0
        self._host = HostDeltas(0 if tables.device.type == "cpu" else max_host_bytes)
        self._changed = threading.Condition(threading.RLock())
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._coming: deque[str] = deque()
        self._readers = AdapterReaders(self._changed, max_load_seconds)
        self._is_closed = False
        self._failure = ""
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> str:
        """Why nothing can be loaded now, or ""."""
        with self._changed:
            return self._failure or self._readers.problem()

    def keeps(self, key: str) -> bool:
        """Whether an adapter is in the tables, or has been asked for them. Changes nothing."""
        with self._changed:
            return key in self._entries

    def pin(self, key: str, adapter: Adapter | None, when_ready: WhenReady) -> Pin:
        """Ask for an adapter; returns at once.

        Args:
            key: Its content hash.
            adapter: What it does to layers; asked for that only if the tables lack it. None to
                ask for nothing but what ``keeps`` has seen.
            when_ready: Called from another thread, unless the returned pin ``is_ready``.

        Returns:
            The hold, which counts from now on.

        Raises:
            EngineError: If the pool is closed.
            EngineDownError: If it is not there, and it or any other cannot be read now.
            ReplacedError: Without an adapter, if it has been dropped.
        """
        pin = Pin(self, key, when_ready)
        with self._changed:
            if self._is_closed:
                raise EngineError(self._failure or "the engine is closed")
            entry = self._entries.get(key)
            if entry is None and adapter is None:
                raise ReplacedError("the adapter has just been dropped from the device")
            if entry is None:
                assert adapter is not None
                self._check_can_read(key)
                entry = self._entries[key] = _Entry(adapter, adapter.label)
                self._coming.append(key)
                self._start()
                self._changed.notify_all()
            entry.pins.add(pin)
            pin.is_ready = entry.is_ready
            self._num_hits += entry.is_ready
            self._entries.move_to_end(key)
        return pin

    def status(self) -> AdapterStatus:
        """What is where. Changes nothing."""
        with self._changed:
            on_device = tuple(each.label for each in self._entries.values() if each.is_ready)
            return AdapterStatus(
                num_on_device=len(on_device),
                device_bytes=self._num_bytes,
                num_on_host=len(self._host),
                host_bytes=self._host.num_bytes,
                num_loads=self._num_loads,
                num_hits=self._num_hits,
                num_dropped=self._num_dropped,
                on_device=on_device,
            )

    def look(self) -> None:
        """Give up adapters that have been read for too long. The pool's thread looks by itself."""
        with self._changed:
            lost = [(each.key, self._overdue(each)) for each in self._readers.take_overdue()]
            problem = self._readers.problem()
            if problem:
                lost += [(key, _down(problem)) for key in self._coming]
                self._coming.clear()
        for key, error in lost:
            log.error("An adapter cannot be loaded: %s", error)
            self._give_up(key, error)

    def close(self) -> None:
        """Load nothing more; whoever waits is told. Idempotent, and waits for no disk."""
        with self._changed:
            self._is_closed = True
            self._readers.close()
        until = time.monotonic() + _CLOSE_SECONDS
        is_over = self._readers.join(until)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
            is_over = is_over and not thread.is_alive()
        if not is_over:
            log.warning("A thread that loads adapters does not end, and is left alone")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="adapter-pool", daemon=True)
            self._thread.start()

    def _release(self, pin: Pin) -> None:
        with self._changed:
            entry = self._entries.get(pin.key)
            if entry is not None:
                entry.pins.discard(pin)
                self._changed.notify_all()

    def _live(self) -> None:
        """The thread's life. However it ends, nobody is left waiting."""
        try:
            while (reading := self._next()) is not None:
                self._bring(reading)
        except BaseException as error:
            self._failure = (
                f"the thread that loads adapters died of {type(error).__name__}: {error}"
            )
            log.error("Adapter pool died", exc_info=True)
        finally:
            with self._changed:
                self._is_closed = True
                self._readers.close()
                waiting = [key for key, entry in self._entries.items() if not entry.is_ready]
            for key in waiting:
                self._give_up(key, EngineError(self._failure or "the engine is closed"))

    def _next(self) -> Reading | None:
        """What has been read, as soon as there is any; None once the pool is closed."""
        while True:
            self.look()
            with self._changed:
                if self._is_closed:
                    return None
                reading = self._begin_next() or self._readers.take()
                if reading is not None:
                    return reading
                self._changed.wait(self._readers.seconds_to_look())

    def _begin_next(self) -> Reading | None:
        """Let adapters be read while that may be; one that the host has, if there is one."""
        while self._coming and self._readers.may_begin:
            key = self._coming.popleft()
            entry = self._entries[key]
            assert entry.adapter is not None
            if not entry.pins:
                del self._entries[key]
                continue
            changes = self._host.get(key)
            if changes is not None:
                return Reading(key, entry.adapter, changes=changes)
            self._readers.begin(key, entry.adapter)
        return None

    def _check_can_read(self, key: str) -> None:
        reading = self._readers.overdue(key)
        if reading is not None:
            raise self._overdue(reading)
        problem = self._readers.problem()
        if problem:
            raise _down(problem)

    def _overdue(self, reading: Reading) -> EngineDownError:
        return _down(
            f"adapter {reading.adapter.label!r} could not be read in "
            f"{self._readers.max_seconds:g} s ('inference.adapters.max_load_seconds')"
        )

    def _bring(self, reading: Reading) -> None:
        key = reading.key
        try:
            is_here = self._load(reading)
        except LuthierError as error:
            self._give_up(key, error)
            return
        except Exception as error:  # background task: whoever waits is told
            log.error("Loading an adapter failed", exc_info=True)
            self._give_up(key, EngineError(f"loading the adapter failed: {error}"))
            return
        if is_here:
            self._tell(key)

    def _load(self, reading: Reading) -> bool:
        """Bring one adapter into the tables; False if nobody wants it any more."""
        key, changes = reading.key, reading.result()
        if self._host.get(key) is None:
            self._host.put(key, changes)
        num_bytes = self._tables.num_bytes(changes)
        if num_bytes > self._max_bytes:
            raise CapacityError(
                f"the adapter takes {num_bytes} bytes, the engine's adapters may take "
                f"{self._max_bytes} bytes together"
            )
        if not self._make_room(key, num_bytes):
            return False
        self._place(reading, changes, num_bytes)
        return True

    def _place(self, reading: Reading, changes: LayerChanges, num_bytes: int) -> None:
        key = reading.key
        try:
            self._tables.place(key, changes)
            if reading.adapter.content_hash() != key:
                raise ConflictError("the adapter was changed while it was being loaded")
        except BaseException:
            with self._changed:
                self._tables.remove(key)
                self._num_bytes -= num_bytes
            raise

    def _make_room(self, key: str, num_bytes: int) -> bool:
        """Wait until the adapter fits and count it in; False if nobody wants it any more."""
        while True:
            self.look()
            with self._changed:
                entry = self._entries[key]
                if self._is_closed:
                    return False
                if not entry.pins:
                    del self._entries[key]
                    return False
                self._evict(num_bytes)
                if self._num_bytes + num_bytes <= self._max_bytes:
                    self._num_bytes += num_bytes
                    entry.num_bytes = num_bytes
                    return True
                self._changed.wait(self._readers.seconds_to_look())

    def _evict(self, num_bytes: int) -> None:
        """Drop what nobody pins, the least recently used first, until ``num_bytes`` fit."""
        for key, entry in list(self._entries.items()):
            if self._num_bytes + num_bytes <= self._max_bytes:
                return
            if entry.is_ready and not entry.pins:
                del self._entries[key]
                self._tables.remove(key)
                self._num_bytes -= entry.num_bytes
                self._num_dropped += 1
                log.debug("adapter dropped: key=%s", key)

    def _tell(self, key: str) -> None:
        with self._changed:
            entry = self._entries[key]
            entry.is_ready = True
            entry.adapter = None  # what the tables hold need not be held twice
            self._num_loads += 1
            pins = list(entry.pins)
            for pin in pins:
                pin.is_ready = True
        for pin in pins:
            pin.when_ready(None)

    def _give_up(self, key: str, error: LuthierError) -> None:
        with self._changed:
            entry = self._entries.pop(key)
        for pin in list(entry.pins):
            pin.when_ready(error)


def _down(problem: str) -> EngineDownError:
    return EngineDownError(problem, retry_after_seconds=_RETRY_AFTER_SECONDS)
