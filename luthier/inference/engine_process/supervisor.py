"""Keeps a process running: starts it, listens to it, starts the next one after a pause if it died.

```
    starting ──ready──► ready ──death──► pause ──► starting …
        └── death, or not ready in time ──►┘   twice as long after each death, up to a limit
```
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import alog

from luthier.errors import EngineDownError, EngineError, LuthierError
from luthier.exit_status import cause_of_death
from luthier.inference.engine_process.child_process import ChildProcess
from luthier.inference.engine_process.logs import write_log
from luthier.inference.engine_process.messages import decode_error
from luthier.inference.options import ProcessOptions

log = alog.use_channel(__name__)

#: Makes an error for each of those who wait.
MakeError = Callable[[], LuthierError]


class Supervisor:
    """The lives of the processes of one engine, one after the other, followed by one thread.

    Args:
        start: Starts a process; called with ``state`` held.
        hear: Told what a process says, its operation's name first, but for its logs and its end.
        fail: Told that a process has ended, with what makes an error for each who waits. Called
            without ``state``; the process is gone by then.
        limits: How long things may take.
        max_silent_seconds: After which a process that says nothing, not even that it lives, is
            killed; None is never.

    Attributes:
        state: Guards all attributes here, and what its user likes.
        process: That runs or starts; None in a pause and after the end.
        is_ready: Whether it can serve.
        failure: Why there is no process that can serve, from a death to the next time that one is
            ready; else "".
        is_closed: Whether there will be no other.

    Raises:
        EngineError: If the first process cannot be started.
    """

    def __init__(
        self,
        start: Callable[[], ChildProcess],
        *,
        hear: Callable[[str, list[Any]], None],
        fail: Callable[[MakeError], None],
        limits: ProcessOptions,
        max_silent_seconds: float | None = None,
    ) -> None:
        self._start_process = start
        self._max_silent_seconds = max_silent_seconds
        self._hear_operation = hear
        self._fail = fail
        self._limits = limits
        self.state = threading.Condition()
        self.process: ChildProcess | None = None
        self.is_ready = False
        self.failure = ""
        self.is_closed = False
        self._started = self._ready_since = self._next_start = 0.0
        with self.state:
            try:
                self._start()
            except OSError as error:
                raise EngineError(f"the process of an engine cannot be started: {error}") from error
        self._thread = threading.Thread(target=self._live, name="engine-process", daemon=True)
        self._thread.start()

    def living(self) -> ChildProcess:
        """The process to talk to; call it with ``state`` held.

        Returns:
            One that runs, or starts and will read what it is told.

        Raises:
            EngineDownError: If there is none, saying why and when there will be one.
            EngineError: If there will be none.
        """
        if self.is_closed:
            raise EngineError("the engine is closed")
        if self.process is None:
            pause = math.ceil(max(0.0, self._next_start - time.monotonic()))
            raise EngineDownError(
                f"{_PREFIX}{self.failure}; it starts again in {pause} s",
                retry_after_seconds=max(1, pause),
            )
        return self.process

    def close(self) -> None:
        """Ask the process to end, and see to it that it does. Idempotent."""
        with self.state:
            self.is_closed = True
            self.state.notify_all()
            process = self.process
            if process is not None and self.is_ready:
                process.say(["close"])
            elif process is not None:
                process.kill()  # it serves nobody yet
        if self._thread is threading.current_thread():
            return
        self._thread.join(self._limits.stop_seconds)
        if self._thread.is_alive() and process is not None:
            log.warning("The process of an engine does not end, and is killed")
            process.kill()
        self._thread.join()

    def _start(self) -> None:
        self.process = self._start_process()
        self.is_ready = False
        self._started = time.monotonic()

    def _live(self) -> None:
        """The thread's life. However a process ends, nobody is left waiting."""
        pause = self._limits.restart_seconds
        while (process := self._next_process()) is not None:
            try:
                make_error = self._follow(process)
            except BaseException as error:
                log.error("Following the process of an engine failed", exc_info=True)
                process.kill()
                make_error = _stopped(f"{type(error).__name__}: {error}")
            if self._ran_well():
                pause = self._limits.restart_seconds
            self._note_death(make_error, pause)
            self._fail(make_error)
            process.end()
            pause = min(2 * pause, self._limits.max_restart_seconds)

    def _next_process(self) -> ChildProcess | None:
        """The one that runs or, after the pause, a new one; None once there will be no other."""
        with self.state:
            while self.process is None and not self.is_closed:
                pause = self._next_start - time.monotonic()
                self.state.wait_for(lambda: self.is_closed, timeout=max(0.0, pause))
                if self.is_closed:
                    break
                try:
                    self._start()
                except OSError as error:
                    self.failure = f"its process cannot be started: {error}"
                    self._next_start = time.monotonic() + self._limits.max_restart_seconds
                    log.error("An engine has stopped: %s", self.failure)
            return self.process

    def _ran_well(self) -> bool:
        """Whether the process was ready for so long that its death is not the last one's."""
        ready_for = time.monotonic() - self._ready_since
        return self.is_ready and ready_for > self._limits.max_restart_seconds

    def _note_death(self, make_error: MakeError, pause: float) -> None:
        with self.state:
            self.process = None
            self.is_ready = False
            if not self.is_closed:
                self.failure = str(make_error()).removeprefix(_PREFIX)
                self._next_start = time.monotonic() + pause
                log.error("An engine has stopped: %s", self.failure)

    def _follow(self, process: ChildProcess) -> MakeError:
        """Pass on what a process says, until it ends; why it did."""
        while True:
            left = self._limits.start_seconds - (time.monotonic() - self._started)
            if not self.is_ready and left <= 0:
                process.kill()
                return _stopped(f"its process was not ready in {self._limits.start_seconds:g} s")
            try:
                message = process.receive(self._max_silent_seconds if self.is_ready else left)
            except (EOFError, OSError):
                return _stopped(f"its process {cause_of_death(process.end())}")
            if message is None and self.is_ready:
                process.kill()
                return _stopped(f"its process said nothing for {self._max_silent_seconds:g} s")
            for name, *values in [] if message is None else message.operations:
                if name == "refused":
                    decode_error(values)  # here, if at all, it may fail
                    return lambda values=values: decode_error(values)  # type: ignore[misc]
                if name == "dead":
                    process.kill()
                    return _stopped(values[0])
                self._hear(process, name, values)

    def _hear(self, process: ChildProcess, name: str, values: list[Any]) -> None:
        if name == "log":
            write_log(*values)
        if name in ("log", "alive"):
            return
        if name == "ready":
            with self.state:
                self.is_ready = True
                self.failure = ""
                self._ready_since = time.monotonic()
            log.info("An engine is ready: pid=%d", process.pid)
        self._hear_operation(name, values)


_PREFIX = "the engine has stopped: "


def _stopped(reason: str) -> MakeError:
    return lambda: EngineError(_PREFIX + reason)
