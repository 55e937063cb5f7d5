"""Finds and loads the kernels that fit this machine.

A kernel checks nothing: whoever calls it has looked at precision, shapes and strides.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import alog
import torch

log = alog.use_channel(__name__)

#: The library for what PyTorch itself computes with here; ``ATEN_CPU_CAPABILITY`` lowers both, and
#: ``default`` leaves no kernels.
_LIBRARY_BY_CAPABILITY = {"AVX512": "avx512", "AVX2": "avx2", "NEON": "neon", "SVE256": "neon"}
#: Kinds of arguments: addresses, whole numbers (C's long), floats, and numbers of threads.
_ARGUMENTS = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "i": ctypes.c_int}
_OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@functools.cache
def kernel(name: str, arguments: str) -> Callable[..., None] | None:
    """A function of the library for this machine; other Python threads run while it does.

    Args:
        name: As in its C source, without ``luthier_``.
        arguments: A letter each: ``p`` an address (``tensor.data_ptr()`` or None), ``l`` a long,
            ``f`` a float, ``i`` an int. Spaces are for the reader.

    Returns:
        The function; None if there are no kernels for this machine.
    """
    library = kernels()
    if library is None:
        return None
    function = getattr(library, f"luthier_{name}")
    function.restype = None
    function.argtypes = [_ARGUMENTS[letter] for letter in arguments.replace(" ", "")]
    return function  # type: ignore[no-any-return]


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library for this machine.

    Returns:
        None if none was compiled for this machine, or if PyTorch computes with several threads here
        that cannot be shared.
    """
    name = _LIBRARY_BY_CAPABILITY.get(torch.backends.cpu.get_cpu_capability())
    path = Path(__file__).with_name(f"kernels.{name}.so")
    if name is None or not path.is_file():
        log.info("There are no kernels for this machine; PyTorch computes alone")
        return None
    library = ctypes.CDLL(str(path))
    openmp = _openmp()
    if openmp is not None:
        library.luthier_use_openmp(*openmp)
    elif torch.get_num_threads() > 1:
        log.info("PyTorch's threads cannot be shared here; it computes alone")
        return None
    return library


def _openmp() -> tuple[ctypes.c_void_p, ...] | None:
    """The functions that start and count the threads of the library that PyTorch has loaded."""
    folder = Path(torch.__file__).parent
    for place in (folder / "lib", folder.parent / "torch.libs"):
        for path in sorted(place.glob("libgomp*.so*")):
            library = ctypes.CDLL(str(path))
            return tuple(
                ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in _OPENMP_FUNCTIONS
            )
    return None
