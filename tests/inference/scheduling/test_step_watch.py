"""The clock is a fake; what looks is the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator

import pytest

from luthier.errors import EngineDownError
from luthier.inference.scheduling.step_watch import StepWatch


class Watched:
    """A watch, its clock and what it told."""

    def __init__(self, max_seconds: float) -> None:
        self.now = 1000.0
        self.told: list[tuple[list[str], str]] = []
        self.watch: StepWatch[str] = StepWatch(max_seconds, on_hang=self._hear)
        self.watch._clock = lambda: self.now

    def _hear(self, rows: Collection[str], problem: str) -> None:
        self.told.append((list(rows), problem))


@pytest.fixture
def watch() -> Iterator[Callable[[float], Watched]]:
    made: list[Watched] = []

    def make(max_seconds: float) -> Watched:
        made.append(Watched(max_seconds))
        return made[-1]

    yield make
    for each in made:
        each.watch.close()


def test_a_step_that_lasts_too_long_is_told_once_with_what_it_works_at(
    watch: Callable[[float], Watched],
) -> None:
    watched, rows = watch(300), ["a"]
    with watched.watch.step(rows):
        pass
    with watched.watch.step(rows):
        rows.append("b")
        watched.now += 299
        watched.watch.look()
        assert (watched.watch.problem(), watched.told) == ("", [])
        watched.watch.check()
        watched.now += 13
        expected = "step 2 with 2 row(s) has lasted 312 s, at most 300 s are allowed"
        assert watched.watch.problem() == expected
        watched.watch.look()
        watched.watch.look()
        assert watched.told == [(["a", "b"], expected)]
        with pytest.raises(EngineDownError, match="does not answer: step 2 with 2") as caught:
            watched.watch.check()
        assert caught.value.retry_after_seconds > 0
    assert watched.watch.problem() == ""
    watched.watch.check()
    watched.watch.look()
    assert len(watched.told) == 1


def test_steps_of_several_threads_are_told_apart(watch: Callable[[float], Watched]) -> None:
    watched = watch(10)
    with watched.watch.step(["slow"]):
        watched.now += 9
        with watched.watch.step(["quick"]):
            watched.now += 2
            watched.watch.look()
    assert [rows for rows, _ in watched.told] == [["slow"]]


def test_without_a_limit_nothing_hangs(watch: Callable[[float], Watched]) -> None:
    watched = watch(0)
    with watched.watch.step(["a"]):
        watched.now += 10**9
        watched.watch.look()
        assert (watched.watch.problem(), watched.told) == ("", [])


def test_a_step_that_fails_has_ended(watch: Callable[[float], Watched]) -> None:
    watched = watch(10)
    with pytest.raises(RuntimeError), watched.watch.step(["a"]):
        watched.now += 11
        raise RuntimeError
    assert watched.watch.problem() == ""


def test_it_looks_by_itself() -> None:
    heard = threading.Event()
    watch: StepWatch[str] = StepWatch(0.01, on_hang=lambda rows, problem: heard.set())
    with watch.step(["a"]):
        assert heard.wait(60)
    watch.close()


def test_a_thread_is_waited_for_unless_its_step_hangs(watch: Callable[[float], Watched]) -> None:
    watched, has_begun, may_end = watch(10), threading.Event(), threading.Event()

    def live() -> None:
        with watched.watch.step(["a"]):
            has_begun.set()
            may_end.wait()

    thread, other = threading.Thread(target=live), threading.Thread(target=lambda: None)
    thread.start()
    assert has_begun.wait(60)
    other.start()
    watched.now += 11
    assert watched.watch.join(other), "its own step does not hang"
    assert watched.told == []
    assert not watched.watch.join(thread)
    # Nobody may look again, so who waits for the step has been told by now.
    assert [rows for rows, _ in watched.told] == [["a"]]
    may_end.set()
    thread.join(60)
    assert watched.watch.join(thread)
