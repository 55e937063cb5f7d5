"""Which adapters are on the device or on their way to it, who holds them, and who is dropped.

```
    least recently used                                      most recently used
        [ a  128 ][ b  512 · pin pin ][ c  64 ][ d  256 · pin ]     bytes, holds
          └ dropped first     └ stays: somebody holds it
```
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import alog

from luthier.errors import CapacityError, LuthierError
from luthier.inference.deltas.delta_tables import DeltaTables

log = alog.use_channel(__name__)

#: Told the error that kept an adapter away, or None when it has come.
WhenReady = Callable[[LuthierError | None], None]


class Pin:
    """One request's hold on an adapter; ``release`` it once the request has ended.

    Args:
        adapters: Where.
        key: The adapter's.
        when_ready: Called if the adapter was not there at once.
    """

    def __init__(self, adapters: ResidentAdapters, key: str, when_ready: WhenReady) -> None:
        self.key = key
        self.when_ready = when_ready
        self.is_ready = False
        self._adapters: ResidentAdapters | None = adapters

    def release(self) -> None:
        """Let the adapter go, whether it has come or not. Idempotent, thread-safe."""
        adapters, self._adapters = self._adapters, None
        if adapters is not None:
            adapters._release(self)


@dataclass
class _Entry:
    """An adapter on the device, or on its way."""

    label: str
    num_bytes: int = 0
    pins: set[Pin] = field(default_factory=set)
    is_ready: bool = False


class ResidentAdapters:
    """Counts the bytes of adapters in the tables, and takes out of them what nobody holds.

    Args:
        tables: Of the engine's model; whoever asked for room puts an adapter there.
        max_bytes: Of all adapters in the tables.
        changed: Guards all of this, and is told when a hold has ended. Every method is called with
            it held, but a pin may be released by anybody.
    """

    def __init__(self, tables: DeltaTables, max_bytes: int, changed: threading.Condition) -> None:
        self._tables = tables
        self._max_bytes = max_bytes
        self._changed = changed
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.num_bytes = 0
        self.num_loads = self.num_hits = self.num_dropped = 0

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def expect(self, key: str, label: str) -> None:
        """Note an adapter that is on its way.

        Args:
            key: Its own.
            label: What people call it.
        """
        self._entries[key] = _Entry(label)

    def hold(self, key: str, when_ready: WhenReady) -> Pin:
        """Keep an adapter until the pin is released; it counts as used now.

        Args:
            key: One that is here or expected.
            when_ready: For whoever tells those that waited for it.

        Returns:
            The hold.
        """
        pin, entry = Pin(self, key, when_ready), self._entries[key]
        entry.pins.add(pin)
        pin.is_ready = entry.is_ready
        self.num_hits += entry.is_ready
        self._entries.move_to_end(key)
        return pin

    def forget_unwanted(self, key: str) -> bool:
        """Forget an expected adapter if nobody holds it any more; whether that is so."""
        if self._entries[key].pins:
            return False
        del self._entries[key]
        return True

    def make_room(self, key: str, num_bytes: int) -> bool:
        """Drop what nobody holds, the least recently used first, until an expected adapter fits.

        Args:
            key: Its own.
            num_bytes: That it will take.

        Returns:
            True if it fits now, and its bytes are counted.

        Raises:
            CapacityError: If it can never fit.
        """
        if num_bytes > self._max_bytes:
            raise CapacityError(
                f"the adapter takes {num_bytes} bytes, the engine's adapters may take "
                f"{self._max_bytes} bytes together"
            )
        self._evict(num_bytes)
        if not self._fits(num_bytes):
            return False
        self._entries[key].num_bytes = num_bytes
        self.num_bytes += num_bytes
        return True

    def take_out(self, key: str) -> None:
        """Empty the place of an adapter that got room."""
        self._tables.remove(key)
        self.num_bytes -= self._entries[key].num_bytes

    def arrive(self, key: str) -> list[Pin]:
        """Note that an expected adapter is in the tables; who waited for it."""
        entry = self._entries[key]
        entry.is_ready = True
        self.num_loads += 1
        for pin in entry.pins:
            pin.is_ready = True
        return list(entry.pins)

    def forget(self, key: str) -> list[Pin]:
        """Forget an expected adapter that does not come; who waited for it."""
        return list(self._entries.pop(key).pins)

    def expected(self) -> list[str]:
        """The keys of those on their way."""
        return [key for key, entry in self._entries.items() if not entry.is_ready]

    def labels(self) -> tuple[str, ...]:
        """Of those in the tables, the least recently used first."""
        return tuple(entry.label for entry in self._entries.values() if entry.is_ready)

    def _fits(self, num_bytes: int) -> bool:
        return self.num_bytes + num_bytes <= self._max_bytes

    def _evict(self, num_bytes: int) -> None:
        for key, entry in list(self._entries.items()):
            if self._fits(num_bytes):
                return
            if entry.is_ready and not entry.pins:
                self.take_out(key)
                del self._entries[key]
                self.num_dropped += 1
                log.debug("adapter dropped: key=%s", key)

    def _release(self, pin: Pin) -> None:
        with self._changed:
            entry = self._entries.get(pin.key)
            if entry is not None:
                entry.pins.discard(pin)
                self._changed.notify_all()
