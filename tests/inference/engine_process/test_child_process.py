from __future__ import annotations

import os
import signal

import pytest
import torch

from luthier.inference.engine_process.child_process import ChildProcess
from luthier.inference.engine_process.messages import Message
from luthier.resources.shared_tensors import SharedTensors


@pytest.fixture
def tensors() -> SharedTensors:
    return SharedTensors([("one", torch.zeros(3))])


def test_a_process_that_is_killed_is_gone_and_says_so(tensors: SharedTensors) -> None:
    child = ChildProcess(tensors.file_descriptor)
    assert child.receive(0.0) is None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        child.receive(60.0)
    child.say(["submit", 1, []])
    assert child.end() == -signal.SIGKILL
    assert child.end() == -signal.SIGKILL


def test_what_cannot_be_put_into_words_ends_the_process(tensors: SharedTensors) -> None:
    """Its request would wait for ever for an answer."""

    def fail() -> Message:
        raise RuntimeError("no words")

    child = ChildProcess(tensors.file_descriptor)
    child.say_later(fail)
    with pytest.raises((EOFError, ConnectionResetError)):
        child.receive(60.0)
    assert child.end() == -signal.SIGKILL


def test_what_is_no_json_is_refused_where_it_is_said(tensors: SharedTensors) -> None:
    child = ChildProcess(tensors.file_descriptor)
    with pytest.raises(TypeError, match="not JSON serializable"):
        child.say(["submit", 1, object()])
    child.kill()
    child.end()
