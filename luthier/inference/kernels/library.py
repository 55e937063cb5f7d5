"""Finds and loads the kernels that fit this machine.

A kernel checks nothing: whoever calls it has looked at precision, shapes and strides.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path

import alog
import torch

from luthier.inference.kernels.sources import fingerprint

log = alog.use_channel(__name__)

#: The library for what PyTorch itself computes with here; ``ATEN_CPU_CAPABILITY`` lowers both, and
#: ``default`` leaves no kernels.
_LIBRARY_BY_CAPABILITY = {"AVX512": "avx512", "AVX2": "avx2"}
#: These have NEON, whatever PyTorch says: it has no name for that alone.
_NEON_MACHINES = {"aarch64", "arm64"}
#: Kinds of arguments: addresses, whole numbers (C's long), floats, and numbers of threads.
_ARGUMENTS = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "i": ctypes.c_int}
#: Others may hold something else than they say.
_TENSORS = (torch.Tensor, torch.nn.Parameter)
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


def can_read(*tensors: torch.Tensor) -> bool:
    """Whether kernels can take tensors as they lie: floats of 32 bits, side by side, on the CPU.

    Not where gradients are asked for: a kernel leaves none. Called for each layer of each step.
    """
    wants_gradients = torch.is_grad_enabled()
    for tensor in tensors:
        if not (
            tensor.dtype == torch.float32
            and tensor.is_cpu
            and tensor.is_contiguous()
            and type(tensor) in _TENSORS
            and not (wants_gradients and tensor.requires_grad)
        ):
            return False
    return True


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library for this machine.

    Returns:
        None if none was compiled for this machine from these sources, or if PyTorch computes with
        several threads here that cannot be shared.
    """
    name = _library_name()
    path = Path(__file__).with_name(f"kernels.{name}.so")
    if name is None or not path.is_file():
        log.info("There are no kernels for this machine; PyTorch computes alone")
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("Kernels cannot be loaded (%s); PyTorch computes alone", error)
        return None
    if _sources_of(library) != fingerprint(path.parent):
        log.warning(
            "%s was compiled from other sources than those beside it; PyTorch computes alone until "
            "Luthier is installed again",
            path,
        )
        return None
    openmp = _openmp()
    if openmp is not None:
        library.luthier_use_openmp(*openmp)
    elif torch.get_num_threads() > 1:
        log.info("PyTorch's threads cannot be shared here; it computes alone")
        return None
    return library


def _library_name() -> str | None:
    """What is compiled for what PyTorch computes with here; None if that is nothing special."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in _NEON_MACHINES:
        return _LIBRARY_BY_CAPABILITY.get(capability)
    lowered = os.environ.get("ATEN_CPU_CAPABILITY", "").lower() == "default"
    return None if lowered else "neon"


def _sources_of(library: ctypes.CDLL) -> str | None:
    """The fingerprint of what a library was compiled from; None if it is too old to say."""
    function = getattr(library, "luthier_sources", None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()  # type: ignore[no-any-return]


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
