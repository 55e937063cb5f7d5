"""Clean-up that must not run where it is asked for: later, in one thread, and before the exit.

The garbage collector may drop a model in any thread, at any line, inside any lock. What has to
happen then (release a lease, end an engine's thread) can block, so it is done here instead. At exit
the interpreter waits for it: a thread that still frees tensors while the interpreter goes down
aborts the process.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from queue import SimpleQueue

import alog

log = alog.use_channel(__name__)


class CleanupThread:
    """One thread that runs what it is given, in order. It starts with the first thing to do."""

    def __init__(self) -> None:
        # SimpleQueue.put is re-entrant, so the collector may call ``run_soon`` at any moment.
        self._todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_finished = False

    def run_soon(self, action: Callable[[], object]) -> None:
        """Run ``action`` in the thread; returns at once, from anywhere.

        After ``finish`` nothing is run any more: the process is about to end.

        Args:
            action: It may block. What it raises is logged.
        """
        with self._lock:
            if self._is_finished:
                return
            self._todo.put(action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="cleanup", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Wait until everything asked for is done, by an action itself too, and stop. Idempotent.

        What a clean-up asks for counts: releasing the last lease of a model asks for the end of its
        engine's threads, and one of them left behind is what aborts a process.
        """
        with self._lock:
            thread = self._thread
            if thread is None:
                self._is_finished = True
                return
            self._todo.put(None)
        thread.join()

    def _live(self) -> None:
        while (action := self._todo.get()) is not None or not self._ends():
            if action is None:
                continue
            try:
                action()
            except Exception:
                log.error("clean-up failed", exc_info=True)
            # The action may hold the last reference to a model; do not keep it while waiting.
            del action

    def _ends(self) -> bool:
        """Asked to stop: True if nothing is left; else the request goes to the end of the line."""
        with self._lock:
            self._is_finished = self._todo.empty()
            if not self._is_finished:
                self._todo.put(None)
            return self._is_finished


_thread = CleanupThread()
run_soon = _thread.run_soon
atexit.register(_thread.finish)
