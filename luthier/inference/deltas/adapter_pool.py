"""Adapters where the engine needs them, within a number of bytes.

```
    disk ──► host memory ──► device: the tables that steps read
      a request pins its adapter on the device until it ends; what nobody pins is dropped,
      the least recently used first, when room is needed
```

One thread reads and copies, so a cold adapter delays only its own requests. On a CPU the device is
the host's memory, and there is no copy between.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import alog

from luthier.adapters.base import Adapter
from luthier.errors import (
    CapacityError,
    ConflictError,
    EngineError,
    LuthierError,
    ReplacedError,
)
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.host_deltas import HostDeltas
from luthier.inference.deltas.layer_changes import changes_of

log = alog.use_channel(__name__)

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
    num_bytes: int = 0
    pins: set[Pin] = field(default_factory=set)
    is_ready: bool = False


@dataclass(frozen=True)
class PoolStatus:
    """A snapshot for metrics.

    Args:
        num_on_device: Adapters that steps can use now.
        device_bytes: What they take.
        num_on_host: Adapters kept in host memory beside the device.
        host_bytes: What they take.
        num_loads: Adapters brought to the device so far, repeatedly counted.
    """

    num_on_device: int = 0
    device_bytes: int = 0
    num_on_host: int = 0
    host_bytes: int = 0
    num_loads: int = 0


class AdapterPool:
    """Brings adapters into the tables and takes them out again. Thread-safe.

    Args:
        tables: Of the engine's model; this is their only writer.
        max_device_bytes: Of all adapters in the tables.
        max_host_bytes: Of adapters that were read once and are kept in host memory for the next
            time; of no use, and not used, where the device is the CPU.
    """

    def __init__(
        self, tables: DeltaTables, *, max_device_bytes: int, max_host_bytes: int = 0
    ) -> None:
        self._tables = tables
        self._max_bytes = max_device_bytes
        self._num_bytes = 0
        self._num_loads = 0
        self._host = HostDeltas(0 if tables.device.type == "cpu" else max_host_bytes)
        self._changed = threading.Condition(threading.RLock())
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._coming: deque[str] = deque()
        self._is_closed = False
        #: Why nothing can be loaded any more, or "".
        self.failure = ""
        self._thread: threading.Thread | None = None

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
            ReplacedError: Without an adapter, if it has been dropped.
        """
        pin = Pin(self, key, when_ready)
        with self._changed:
            if self._is_closed:
                raise EngineError(self.failure or "the engine is closed")
            entry = self._entries.get(key)
            if entry is None and adapter is None:
                raise ReplacedError("the adapter has just been dropped from the device")
            if entry is None:
                entry = self._entries[key] = _Entry(adapter)
                self._coming.append(key)
                self._start()
                self._changed.notify_all()
            entry.pins.add(pin)
            pin.is_ready = entry.is_ready
            self._entries.move_to_end(key)
        return pin

    def status(self) -> PoolStatus:
        """What is where. Changes nothing."""
        with self._changed:
            num_ready = sum(entry.is_ready for entry in self._entries.values())
            return PoolStatus(
                num_ready, self._num_bytes, len(self._host), self._host.num_bytes, self._num_loads
            )

    def close(self) -> None:
        """Load nothing more; whoever waits is told. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

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
            while (key := self._next()) is not None:
                self._bring(key)
        except BaseException as error:
            self.failure = f"the thread that loads adapters died of {type(error).__name__}: {error}"
            log.error("Adapter pool died", exc_info=True)
        finally:
            with self._changed:
                self._is_closed = True
                waiting = [key for key, entry in self._entries.items() if not entry.is_ready]
            for key in waiting:
                self._give_up(key, EngineError(self.failure or "the engine is closed"))

    def _next(self) -> str | None:
        with self._changed:
            while not self._is_closed:
                if self._coming:
                    return self._coming.popleft()
                self._changed.wait()
        return None

    def _bring(self, key: str) -> None:
        try:
            is_here = self._load(key)
        except LuthierError as error:
            self._give_up(key, error)
            return
        except Exception as error:  # background task: whoever waits is told
            log.error("Loading an adapter failed", exc_info=True)
            self._give_up(key, EngineError(f"loading the adapter failed: {error}"))
            return
        if is_here:
            self._tell(key)

    def _load(self, key: str) -> bool:
        """Bring one adapter into the tables; False if nobody wants it any more."""
        with self._changed:
            entry = self._entries[key]
            if not entry.pins:
                del self._entries[key]
                return False
            adapter = entry.adapter
        assert adapter is not None
        changes = self._host.get(key)
        if changes is None:
            changes = changes_of(adapter)
            self._host.put(key, changes)
        num_bytes = self._tables.num_bytes(changes)
        if num_bytes > self._max_bytes:
            raise CapacityError(
                f"the adapter takes {num_bytes} bytes, the engine's adapters may take "
                f"{self._max_bytes} bytes together"
            )
        if not self._make_room(key, num_bytes):
            return False
        try:
            self._tables.place(key, changes)
            if adapter.content_hash() != key:
                raise ConflictError("the adapter was changed while it was being loaded")
        except BaseException:
            with self._changed:
                self._tables.remove(key)
                self._num_bytes -= num_bytes
            raise
        return True

    def _make_room(self, key: str, num_bytes: int) -> bool:
        """Wait until the adapter fits and count it in; False if nobody wants it any more."""
        with self._changed:
            entry = self._entries[key]
            while entry.pins and not self._is_closed:
                self._evict(num_bytes)
                if self._num_bytes + num_bytes <= self._max_bytes:
                    self._num_bytes += num_bytes
                    entry.num_bytes = num_bytes
                    return True
                self._changed.wait()
            if not self._is_closed:
                del self._entries[key]
            return False

    def _evict(self, num_bytes: int) -> None:
        """Drop what nobody pins, the least recently used first, until ``num_bytes`` fit."""
        for key, entry in list(self._entries.items()):
            if self._num_bytes + num_bytes <= self._max_bytes:
                return
            if entry.is_ready and not entry.pins:
                del self._entries[key]
                self._tables.remove(key)
                self._num_bytes -= entry.num_bytes
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
