"""The process is a fake: what matters is who is told what when it says or does something."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from luthier.errors import CapacityError, EngineDownError, EngineError, LuthierError
from luthier.inference.engine_process.child_process import ChildProcess
from luthier.inference.engine_process.messages import Message, Operation, encode_error
from luthier.inference.engine_process.supervisor import MakeError, Supervisor
from luthier.inference.options import ProcessOptions

LONG = 3600.0


class FakeProcess:
    """Says what a test lets it say; ``None`` in the queue is its end."""

    pid = 17

    def __init__(self) -> None:
        self.heard: list[Operation] = []
        self.says: queue.Queue[Operation | None] = queue.Queue()
        self.was_killed = False

    def say(self, operation: Operation) -> None:
        self.heard.append(operation)
        if operation == ["close"]:
            self.says.put(None)

    def receive(self, timeout_seconds: float | None) -> Message | None:
        try:
            said = self.says.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if said is None:
            raise EOFError
        return Message([said])

    def kill(self) -> None:
        self.was_killed = True
        self.says.put(None)

    def end(self) -> int:
        return -9


class Watched:
    """A supervisor, the processes it started, and what it told."""

    def __init__(self, *, max_silent_seconds: float | None = None, **limits: float) -> None:
        self.processes: queue.Queue[FakeProcess] = queue.Queue()
        self.heard: queue.Queue[tuple[str, list[Any]]] = queue.Queue()
        self.errors: queue.Queue[LuthierError] = queue.Queue()
        self.start_error: OSError | None = None
        options = {"start_seconds": LONG, "restart_seconds": LONG, "max_restart_seconds": LONG}
        self.supervisor = Supervisor(
            self._start,
            hear=lambda name, values: self.heard.put((name, values)),
            fail=self._fail,
            limits=ProcessOptions(**{**options, **limits}),  # type: ignore[arg-type]
            max_silent_seconds=max_silent_seconds,
        )

    def next_process(self) -> FakeProcess:
        return self.processes.get(timeout=60)

    def next_error(self) -> LuthierError:
        return self.errors.get(timeout=60)

    def _start(self) -> ChildProcess:
        process = FakeProcess()
        self.processes.put(process)
        return cast(ChildProcess, process)

    def _fail(self, make_error: MakeError) -> None:
        self.errors.put(make_error())


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(**limits: float) -> Watched:
        made.append(Watched(**limits))
        return made[-1]

    yield make
    for each in made:
        each.supervisor.close()


def test_what_a_process_says_is_passed_on(watch: Callable[..., Watched]) -> None:
    watched = watch()
    process = watched.next_process()
    assert watched.supervisor.living() is process
    assert not watched.supervisor.is_ready
    process.says.put(["ready", True])
    assert watched.heard.get(timeout=60) == ("ready", [True])
    assert watched.supervisor.is_ready
    process.says.put(["log", "luthier.test", 10, "not a matter for the engine"])
    process.says.put(["step", 1, 2])
    assert watched.heard.get(timeout=60) == ("step", [1, 2])


def test_a_death_is_told_with_its_reason_and_requests_are_refused_until_the_next(
    watch: Callable[..., Watched],
) -> None:
    watched = watch()
    process = watched.next_process()
    process.says.put(["ready", False])
    process.says.put(None)
    error = watched.next_error()
    assert type(error) is EngineError
    assert str(error).startswith("the engine has stopped: its process was killed by signal 9")
    supervisor = watched.supervisor
    assert supervisor.failure.startswith("its process was killed by signal 9 (SIGKILL)")
    with supervisor.state, pytest.raises(EngineDownError, match="starts again in 3600 s") as caught:
        supervisor.living()
    assert caught.value.retry_after_seconds == 3600
    assert watched.processes.empty()


def test_the_next_process_starts_after_the_pause_and_the_failure_stays_until_it_is_ready(
    watch: Callable[..., Watched],
) -> None:
    watched = watch(restart_seconds=0.0)
    first = watched.next_process()
    first.says.put(["ready", False])
    first.says.put(None)
    second = watched.next_process()
    watched.next_error()
    with watched.supervisor.state:
        assert watched.supervisor.living() is second
        assert watched.supervisor.failure
    assert watched.heard.get(timeout=60) == ("ready", [False])
    second.says.put(["ready", False])
    assert watched.heard.get(timeout=60) == ("ready", [False])
    assert watched.supervisor.failure == ""


def test_processes_that_keep_dying_are_started_ever_later(watch: Callable[..., Watched]) -> None:
    watched = watch(restart_seconds=0.1)
    supervisor = watched.supervisor
    for _ in range(10):
        watched.next_process().says.put(None)
        watched.next_error()
        with supervisor.state:
            if supervisor.process is None:
                with pytest.raises(EngineDownError) as caught:
                    supervisor.living()
                if caught.value.retry_after_seconds > 1:
                    return
    pytest.fail("the pause did not grow")


def test_one_that_is_not_ready_in_time_is_killed(watch: Callable[..., Watched]) -> None:
    watched = watch(start_seconds=0.05)
    error = watched.next_error()
    assert str(error) == "the engine has stopped: its process was not ready in 0.05 s"
    assert watched.next_process().was_killed


def test_a_start_that_is_refused_gives_the_reason_as_it_was(
    watch: Callable[..., Watched],
) -> None:
    watched = watch()
    refused = encode_error(CapacityError("no memory for keys and values", retry_after_seconds=9))
    watched.next_process().says.put(["refused", *refused])
    error = watched.next_error()
    assert isinstance(error, CapacityError)
    assert error.retry_after_seconds == 9
    assert watched.supervisor.failure == "no memory for keys and values"


def test_a_process_whose_engine_died_is_killed(watch: Callable[..., Watched]) -> None:
    watched = watch()
    process = watched.next_process()
    process.says.put(["ready", False])
    process.says.put(["dead", "its thread died of SystemExit: killed"])
    assert str(watched.next_error()).endswith("its thread died of SystemExit: killed")
    assert process.was_killed


def test_a_process_that_says_nothing_any_more_is_killed(watch: Callable[..., Watched]) -> None:
    watched = watch(max_silent_seconds=0.05)
    process = watched.next_process()
    process.says.put(["ready", False])
    error = str(watched.next_error())
    assert error == "the engine has stopped: its process said nothing for 0.05 s"
    assert process.was_killed


def test_to_say_that_it_lives_is_passed_on_to_nobody(watch: Callable[..., Watched]) -> None:
    watched = watch(max_silent_seconds=LONG)
    process = watched.next_process()
    process.says.put(["alive"])
    process.says.put(["ready", False])
    assert watched.heard.get(timeout=60) == ("ready", [False])


@pytest.mark.parametrize(
    ("said", "kind"),
    [(["log", "too", "few"], "TypeError"), (["refused", "why"], "ValueError")],
)
def test_a_message_that_nobody_understands_ends_the_process_loudly(
    watch: Callable[..., Watched], said: Operation, kind: str
) -> None:
    watched = watch()
    process = watched.next_process()
    process.says.put(said)
    assert kind in str(watched.next_error())
    assert process.was_killed


@pytest.mark.parametrize("is_ready", [False, True])
def test_closing_ends_the_process_and_starts_no_other(
    watch: Callable[..., Watched], is_ready: bool
) -> None:
    watched = watch(restart_seconds=0.0)
    process = watched.next_process()
    if is_ready:
        process.says.put(["ready", False])
        watched.heard.get(timeout=60)
    watched.supervisor.close()
    watched.supervisor.close()
    assert process.heard == ([["close"]] if is_ready else [])
    assert process.was_killed is not is_ready
    assert watched.processes.empty()
    assert watched.supervisor.failure == ""
    with watched.supervisor.state, pytest.raises(EngineError, match="the engine is closed"):
        watched.supervisor.living()


def test_closing_does_not_wait_for_the_end_of_a_pause(watch: Callable[..., Watched]) -> None:
    watched = watch()
    watched.next_process().says.put(None)
    watched.next_error()
    closing = threading.Thread(target=watched.supervisor.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_one_that_does_not_end_is_killed(watch: Callable[..., Watched]) -> None:
    watched = watch(stop_seconds=0.05)
    process = watched.next_process()
    process.says.put(["ready", False])
    watched.heard.get(timeout=60)
    process.say = process.heard.append  # type: ignore[method-assign]
    watched.supervisor.close()
    assert process.heard == [["close"]]
    assert process.was_killed


def test_no_process_at_all_is_an_error_at_once() -> None:
    def start() -> ChildProcess:
        raise OSError("no more processes")

    with pytest.raises(EngineError, match="cannot be started: no more processes"):
        Supervisor(start, hear=print, fail=print, limits=ProcessOptions())
