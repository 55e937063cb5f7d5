"""The process itself, and what becomes of it when its owner goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.inference.engine_process import child

OWNER = """
import sys, time
from pathlib import Path
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources
sources = BaseModelSources(shares_memory=True)
base = load_base_model(BaseModelLocation("tiny", Path(sys.argv[1]), "path"), sources=sources)
engine = ProcessEngine(base)
stream = iter(engine.submit(GenerationRequest((5, 6), SamplingParams(max_new_tokens=900))))
next(stream)
print(engine.pid, flush=True)
time.sleep(600)
"""


def wait_until(is_true: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_an_owner_that_is_killed_leaves_neither_process_nor_folder(
    tiny_causal_dir: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tiny_causal_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        assert len(list(tmp_path.iterdir())) == 1
        owner.kill()
    wait_until(lambda: not is_alive(pid))
    assert list(tmp_path.iterdir()) == []


def test_an_owner_may_be_there_for_a_moment_after_its_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parents = iter([7, 7, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    assert child._has_lost(7)
    monkeypatch.setattr(child, "_DYING_SECONDS", 0.0)
    monkeypatch.setattr(os, "getppid", lambda: 7)
    assert not child._has_lost(7), "it closed the connection, and lives"
