"""Adapters where the engine needs them, within a number of bytes.

```
    disk ──► host memory ──► device: the tables that steps read
     readers   host deltas    resident adapters, which requests pin until they end
```

One thread copies, and others read for it, so a cold adapter delays only its own requests, and one
that cannot be read in time only them. On a CPU the device is the host's memory, and there is no
copy between.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import alog

from luthier.adapters.base import Adapter
from luthier.errors import (
    ConflictError,
    EngineDownError,
    EngineError,
    LuthierError,
    ReplacedError,
)
from luthier.inference.base import AdapterStatus
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.layer_changes import LayerChanges
from luthier.inference.deltas.pool.adapter_readers import AdapterReaders, Reading
from luthier.inference.deltas.pool.host_deltas import HostDeltas
from luthier.inference.deltas.pool.resident_adapters import Pin, ResidentAdapters, WhenReady

log = alog.use_channel(__name__)

#: How long ``close`` waits for threads, in seconds.
_CLOSE_SECONDS = 10.0
#: How long whoever is refused shall wait: the disk has been waited for many times that already.
_RETRY_AFTER_SECONDS = 10


class AdapterPool:
    """Brings adapters into the tables, and lets them be dropped again. Thread-safe.

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
        self._host = HostDeltas(0 if tables.device.type == "cpu" else max_host_bytes)
        self._changed = threading.Condition(threading.RLock())
        self._residents = ResidentAdapters(tables, max_device_bytes, self._changed)
        self._coming: deque[tuple[str, Adapter]] = deque()
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
            return key in self._residents

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
        with self._changed:
            if self._is_closed:
                raise EngineError(self._failure or "the engine is closed")
            if key not in self._residents:
                self._expect(key, adapter)
            return self._residents.hold(key, when_ready)

    def status(self) -> AdapterStatus:
        """What is where. Changes nothing."""
        with self._changed:
            residents = self._residents
            on_device = residents.labels()
            return AdapterStatus(
                num_on_device=len(on_device),
                device_bytes=residents.num_bytes,
                num_on_host=len(self._host),
                host_bytes=self._host.num_bytes,
                num_loads=residents.num_loads,
                num_hits=residents.num_hits,
                num_dropped=residents.num_dropped,
                on_device=on_device,
            )

    def look(self) -> None:
        """Give up adapters that have been read for too long. The pool's thread looks by itself."""
        with self._changed:
            lost = [(each.key, self._overdue(each)) for each in self._readers.take_overdue()]
            problem = self._readers.problem()
            if problem:
                lost += [(key, _down(problem)) for key, _ in self._coming]
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

    def _expect(self, key: str, adapter: Adapter | None) -> None:
        """Let an adapter be brought that nobody has asked for yet."""
        if adapter is None:
            raise ReplacedError("the adapter has just been dropped from the device")
        self._check_can_read(key)
        self._residents.expect(key, adapter.label)
        self._coming.append((key, adapter))
        self._start()
        self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="adapter-pool", daemon=True)
            self._thread.start()

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
                waiting = self._residents.expected()
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
            key, adapter = self._coming.popleft()
            if self._residents.forget_unwanted(key):
                continue
            changes = self._host.get(key)
            if changes is not None:
                return Reading(key, adapter, changes=changes)
            self._readers.begin(key, adapter)
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
        if not self._make_room(key, self._tables.num_bytes(changes)):
            return False
        self._place(reading, changes)
        return True

    def _make_room(self, key: str, num_bytes: int) -> bool:
        """Wait until the adapter fits and count it in; False if nobody wants it any more."""
        while True:
            self.look()
            with self._changed:
                if self._is_closed or self._residents.forget_unwanted(key):
                    return False
                if self._residents.make_room(key, num_bytes):
                    return True
                self._changed.wait(self._readers.seconds_to_look())

    def _place(self, reading: Reading, changes: LayerChanges) -> None:
        key = reading.key
        try:
            self._tables.place(key, changes)
            if reading.adapter.content_hash() != key:
                raise ConflictError("the adapter was changed while it was being loaded")
        except BaseException:
            with self._changed:
                self._residents.take_out(key)
            raise

    def _tell(self, key: str) -> None:
        with self._changed:
            pins = self._residents.arrive(key)
        for pin in pins:
            pin.when_ready(None)

    def _give_up(self, key: str, error: LuthierError) -> None:
        with self._changed:
            pins = self._residents.forget(key)
        for pin in pins:
            pin.when_ready(error)


def _down(problem: str) -> EngineDownError:
    return EngineDownError(problem, retry_after_seconds=_RETRY_AFTER_SECONDS)
