"""Threads that read adapters. Any of them may hang: a disk that does not answer raises nothing.

```
    thread 1   [ a ][ b ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ]  comes too late: dropped
    thread 2              [ c ][ d ][ e ]      │ overdue: b is given up
                     └ slow: others go on beside it
```

One reads at a time as long as it is quick, so that steps have the processor. A thread that hangs is
left behind and counts until it comes back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import alog

from luthier.adapters.base import Adapter
from luthier.inference.deltas.layer_changes import LayerChanges, changes_of

log = alog.use_channel(__name__)

#: Threads that may read, or hang, at the same time.
MAX_READERS = 4
#: How long a reading keeps the next one from beginning.
_SLOW_SECONDS = 1.0


@dataclass(eq=False)
class Reading:
    """One adapter that is read.

    Args:
        key: The adapter's.
        adapter: Whose tensors are asked for.
        began: When, on the readers' clock.
        is_overdue: Whether it has lasted too long; what it gives is dropped.
        changes: What came.
        error: What came instead.
    """

    key: str
    adapter: Adapter
    began: float = 0.0
    is_overdue: bool = False
    changes: LayerChanges | None = None
    error: BaseException | None = None

    def result(self) -> LayerChanges:
        """What came; raises what came instead."""
        if self.error is not None:
            raise self.error
        assert self.changes is not None
        return self.changes


class AdapterReaders:
    """Reads adapters in threads of its own, ``MAX_READERS`` at most.

    Args:
        changed: Guards all of this, and is told when a reading has ended. Every method but ``join``
            is called with it held.
        max_seconds: Longest that a reading may last; 0 is for ever.
    """

    def __init__(self, changed: threading.Condition, max_seconds: float) -> None:
        self._changed = changed
        self.max_seconds = max_seconds
        self.clock = time.monotonic
        self._asked: deque[Reading] = deque()
        self._reading: set[Reading] = set()
        self._done: deque[Reading] = deque()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0  # threads that read nothing, those that have just been started included
        self._is_closed = False

    @property
    def may_begin(self) -> bool:
        """Whether one more adapter may be read now."""
        now = self.clock()
        is_free = all(now - each.began >= _SLOW_SECONDS for each in self._reading)
        return is_free and len(self._reading) < MAX_READERS

    def begin(self, key: str, adapter: Adapter) -> None:
        """Read an adapter; ``take`` gives what comes of it.

        Args:
            key: Its own.
            adapter: Any.
        """
        reading = Reading(key, adapter, self.clock())
        self._reading.add(reading)
        self._asked.append(reading)
        if self._num_idle < len(self._asked):
            self._num_idle += 1
            name = f"adapter-reader-{len(self._threads)}"
            thread = threading.Thread(target=self._live, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def take(self) -> Reading | None:
        """One that has ended in time, or None."""
        return self._done.popleft() if self._done else None

    def take_overdue(self) -> list[Reading]:
        """Those that have lasted too long since this was asked last."""
        if not self.max_seconds:
            return []
        since = self.clock() - self.max_seconds
        found = [each for each in self._reading if not each.is_overdue and each.began <= since]
        for each in found:
            each.is_overdue = True
        return found

    def overdue(self, key: str) -> Reading | None:
        """The reading of an adapter that was given up and goes on still."""
        return next((each for each in self._reading if each.is_overdue and each.key == key), None)

    def problem(self) -> str:
        """Why no adapter can be read now, or ""."""
        overdue = [each for each in self._reading if each.is_overdue]
        if len(overdue) < MAX_READERS:
            return ""
        names = ", ".join(sorted({repr(each.adapter.label) for each in overdue}))
        return (
            f"no adapter can be read: {MAX_READERS} threads have been reading {names} for more "
            f"than {self.max_seconds:g} s each"
        )

    def seconds_to_look(self) -> float | None:
        """Until another may begin or one is overdue; None if only an end can change anything."""
        now = self.clock()
        ages = [now - each.began for each in self._reading]
        marks = (_SLOW_SECONDS, self.max_seconds)
        return min((mark - age for age in ages for mark in marks if mark > age), default=None)

    def close(self) -> None:
        """Read nothing more. Idempotent."""
        self._is_closed = True
        self._changed.notify_all()

    def join(self, until: float) -> bool:
        """Wait for the threads, but not for those that are known to hang; call ``close`` before.

        Args:
            until: Not longer, in seconds of ``time.monotonic``.

        Returns:
            False if one was left running.
        """
        with self._changed:
            is_stuck = any(each.is_overdue for each in self._reading)
        if not is_stuck:
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _live(self) -> None:
        while (reading := self._next()) is not None:
            try:
                reading.changes = changes_of(reading.adapter)
            except BaseException as error:  # noqa: BLE001  whoever takes the reading raises it
                reading.error = error
            self._end(reading)

    def _next(self) -> Reading | None:
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._is_closed)
            if self._is_closed:
                return None
            self._num_idle -= 1
            return self._asked.popleft()

    def _end(self, reading: Reading) -> None:
        with self._changed:
            self._reading.remove(reading)
            self._num_idle += 1
            if reading.is_overdue:
                seconds = self.clock() - reading.began
                name = reading.adapter.label
                log.warning("Reading adapter %s has ended after %.0f s", name, seconds)
            else:
                self._done.append(reading)
            self._changed.notify_all()
