"""Clean-up in a thread of its own: order, re-entrance, failure and the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref

from luthier.resources.cleanup import CleanupThread


def test_actions_run_in_order_in_another_thread():
    cleanup, seen = CleanupThread(), []
    for number in range(5):
        cleanup.run_soon(lambda number=number: seen.append((number, threading.get_ident())))
    cleanup.finish()
    assert [number for number, _ in seen] == list(range(5))
    assert {thread for _, thread in seen} != {threading.get_ident()}


def test_an_action_may_ask_for_another():
    cleanup, done = CleanupThread(), threading.Event()
    cleanup.run_soon(lambda: cleanup.run_soon(done.set))
    assert done.wait(60)
    cleanup.finish()


def test_what_an_action_asks_for_is_done_even_while_the_thread_is_being_stopped():
    cleanup, begins, goes_on, seen = CleanupThread(), threading.Event(), threading.Event(), []

    def release() -> None:
        begins.set()
        goes_on.wait(30)
        cleanup.run_soon(lambda: seen.append("engine closed"))

    cleanup.run_soon(release)
    assert begins.wait(30)
    stopping = threading.Thread(target=cleanup.finish)
    stopping.start()
    goes_on.set()
    stopping.join()
    assert seen == ["engine closed"]
    cleanup.finish()
    cleanup.run_soon(lambda: seen.append("too late"))
    assert seen == ["engine closed"]


def test_a_failing_action_does_not_stop_the_next():
    cleanup, done = CleanupThread(), threading.Event()
    cleanup.run_soon(lambda: 1 / 0)
    cleanup.run_soon(done.set)
    cleanup.finish()
    assert done.is_set()


def test_an_action_is_not_kept_once_it_ran():
    class Model:
        def release(self) -> None:
            pass

    cleanup, model = CleanupThread(), Model()
    gone = weakref.ref(model)
    cleanup.run_soon(model.release)
    del model
    cleanup.finish()
    assert gone() is None


def test_nothing_runs_after_the_end():
    cleanup, seen = CleanupThread(), []
    cleanup.finish()
    cleanup.run_soon(lambda: seen.append(1))
    cleanup.finish()
    assert seen == []


def test_the_exit_of_the_process_waits_for_what_was_asked():
    program = (
        "import time\n"
        "from luthier.resources.cleanup import run_soon\n"
        "run_soon(lambda: (time.sleep(0.3), print('released', flush=True)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "released\n"
