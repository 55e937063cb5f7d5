"""Memory that a training frees stays with the process while it lasts.

Every step frees what it took, and the next takes as much again. The GNU C library gives freed
memory back to the system and gets it anew, page by page, each filled with zeros first: 2 to 7 % of
a step's CPU time. Other libraries are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import threading
from collections.abc import Iterator

#: Names of settings in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Larger blocks are mapped and given back each by itself, so that they leave no holes. Of the sizes
#: that the library chooses among by its own rule, which ends with the first setting, the largest.
_MAPPED_FROM = 2**25
#: Free bytes that are kept: all of them (mallopt takes an int), and what its own rule comes to.
_KEPT, _USUAL = 2**31 - 1, 2**26

#: Blocks that are given back where memory is worth more than time.
_RETURNED_FROM = 2**20


class _Trainings:
    """How many trainings of this process want memory kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0


_trainings = _Trainings()


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory for as long as this lasts; afterwards the library's usual rule holds.

    What is free then is not given back by force: the next training would have to get it anew.

    Yields:
        Nothing.
    """
    library = _gnu_library()
    if library is None:
        yield
        return
    with _trainings.lock:
        _trainings.number += 1
        library.mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        with _trainings.lock:
            _trainings.number -= 1
            if _trainings.number == 0:
                library.mallopt(_TRIM_THRESHOLD, _USUAL)


def return_freed_memory() -> None:
    """Give freed blocks of a megabyte and more back at once, from now on.

    For processes that hold shares of weights: each layer is borrowed for a moment, and what is
    borrowed, kept and cut up, adds up to several times the model.
    """
    library = _gnu_library()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _RETURNED_FROM)


@functools.cache
def _gnu_library() -> ctypes.CDLL | None:
    """The C library of this process, if it is GNU's."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
