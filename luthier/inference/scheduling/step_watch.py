"""Notices a step that does not end: a forward pass that hangs raises nothing.

```
    engine's thread   ──[ step ]──[ step ]──[ step ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ]──[ step ]──
    problem()         ""                                  │ why               │ ""
    on_hang()                                             └ once, soon after
```
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import alog

from luthier.errors import EngineDownError

log = alog.use_channel(__name__)

Row = TypeVar("Row")
#: Longest time between two looks at the steps that run.
_MAX_LOOK_SECONDS = 10.0
#: How long whoever is refused shall wait: the step has lasted many times that already.
_RETRY_AFTER_SECONDS = 10


@dataclass(eq=False)
class _Step(Generic[Row]):
    number: int
    rows: Collection[Row]
    started: float
    thread: threading.Thread
    is_told: bool = False


class StepWatch(Generic[Row]):
    """The steps of one engine that run now, and whether one of them hangs. Thread-safe.

    Args:
        max_seconds: Longest that a step may last; 0 is for ever.
        on_hang: Told of each step that lasts longer, once: its rows, and what is wrong with it.
            Called from a thread of this object's.
    """

    def __init__(
        self, max_seconds: float, *, on_hang: Callable[[Collection[Row], str], None]
    ) -> None:
        self._max_seconds = max_seconds
        self._on_hang = on_hang
        self._clock = time.monotonic
        self._numbers = itertools.count(1)
        self._steps: dict[int, _Step[Row]] = {}
        self._looking = threading.Lock()
        self._is_closed = threading.Event()
        if max_seconds:
            threading.Thread(target=self._live, name="step-watch", daemon=True).start()

    @contextmanager
    def step(self, rows: Collection[Row]) -> Iterator[None]:
        """One step of the engine, for the length of the ``with`` block.

        Args:
            rows: That it works at; may change meanwhile.
        """
        number = next(self._numbers)
        step = self._steps[number] = _Step(number, rows, self._clock(), threading.current_thread())
        try:
            yield
        finally:
            del self._steps[number]
            if step.is_told:
                seconds = self._clock() - step.started
                log.warning("Step %d of an engine has ended after %.0f s", number, seconds)

    def problem(self) -> str:
        """What is wrong with a step that lasts too long, or "". Changes nothing; waits for nobody.

        Returns:
            A clause for a message; empty again once the step has ended.
        """
        return next((self._describe(step) for step in self._hanging()), "")

    def check(self) -> None:
        """Refuse a request while a step hangs.

        Raises:
            EngineDownError: Saying which step, and how long it has lasted.
        """
        problem = self.problem()
        if problem:
            raise EngineDownError(
                f"the engine does not answer: {problem}", retry_after_seconds=_RETRY_AFTER_SECONDS
            )

    def look(self) -> None:
        """Tell ``on_hang`` of steps that it does not know of yet."""
        with self._looking:
            untold = [step for step in self._hanging() if not step.is_told]
            for step in untold:
                step.is_told = True
                problem = self._describe(step)
                log.error("An engine does not answer: %s", problem)
                self._on_hang(step.rows, problem)

    def join(self, thread: threading.Thread) -> bool:
        """Wait for the end of a thread that runs steps, unless the one that it runs hangs.

        Args:
            thread: The engine's.

        Returns:
            False if it was left running.
        """
        while thread.is_alive():
            if any(step.thread is thread for step in self._hanging()):
                self.look()  # who waits for the step must be told before nobody looks any more
                log.warning("A thread of an engine does not end, and is left alone")
                return False
            thread.join(1.0)
        return True

    def close(self) -> None:
        """Look no more. Idempotent."""
        self._is_closed.set()

    def _live(self) -> None:
        while not self._is_closed.wait(min(self._max_seconds / 4, _MAX_LOOK_SECONDS)):
            self.look()

    def _hanging(self) -> list[_Step[Row]]:
        if not self._max_seconds:
            return []
        since = self._clock() - self._max_seconds
        # Copied at one go: steps come and go in other threads.
        return [step for step in list(self._steps.values()) if step.started < since]

    def _describe(self, step: _Step[Row]) -> str:
        seconds = self._clock() - step.started
        return (
            f"step {step.number} with {len(step.rows)} row(s) has lasted {seconds:.0f} s, at most "
            f"{self._max_seconds:g} s are allowed"
        )
