"""Freed memory is kept while a training lasts."""

import platform
import subprocess
import sys

import pytest

from luthier.training.processes.memory_reuse import memory_kept

PROGRAM = """
import resource
import torch
from luthier.training.processes.memory_reuse import memory_kept

def new_mib():
    "What twenty blocks of 16 MiB, there all at once, need of new pages."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**22) for _ in range(20)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * PAGE / 2**20

PAGE = resource.getpagesize()
new_mib()
usual = new_mib()
with memory_kept():
    with memory_kept():
        new_mib()
    again = new_mib()
print(usual, again)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    usual, again = map(float, done.stdout.split())
    assert usual > 200
    assert again < 50


def test_an_error_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), memory_kept():
        _ = 1 / 0
