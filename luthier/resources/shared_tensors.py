"""Tensors in memory that several processes map: one copy, whoever reads it.

The memory is an anonymous file: no name, no folder, no limit of ``/dev/shm``, and nothing is left
behind however a process ends. Whoever is given its descriptor maps the same pages.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

#: Tensors start at multiples of this many bytes, as torch's own do.
_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies and how it is read.

    Args:
        offset: Of its first byte.
        dtype: A name in ``torch``.
        shape: Of the tensor.
        stride: Elements between neighbours, by dimension; the tensor has no gaps.
    """

    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class SharedTensors:
    """Copies of tensors in shared memory, by name.

    Args:
        tensors: On any device. Names of one tensor (tied weights) share its copy.
        takes_over: Let each of them use its copy in place of its own memory, which is freed if
            nobody else has it. Only for tensors that no other thread computes with.
    """

    def __init__(
        self, tensors: Iterable[tuple[str, torch.Tensor]], *, takes_over: bool = False
    ) -> None:
        named = list(tensors)
        self.places, size = _places(named)
        self.file_descriptor = _anonymous_file(size)
        self._finalizer = weakref.finalize(self, os.close, self.file_descriptor)
        memory = mmap.mmap(self.file_descriptor, size)
        copied: set[TensorPlace] = set()
        with torch.no_grad():
            for name, tensor in named:
                place = self.places[name]
                copy = _view(memory, place)
                if place not in copied:
                    copied.add(place)
                    copy.copy_(tensor)
                if takes_over:
                    tensor.data = copy


def map_tensors(file_descriptor: int, places: Mapping[str, TensorPlace]) -> dict[str, torch.Tensor]:
    """Map tensors that another process holds; writing to one of them ends this process.

    Args:
        file_descriptor: Of ``SharedTensors``; it may be closed afterwards.
        places: Likewise.

    Returns:
        The tensors by name. Names at one place have one tensor object.
    """
    memory = mmap.mmap(file_descriptor, 0, prot=mmap.PROT_READ)
    views: dict[TensorPlace, torch.Tensor] = {}
    with warnings.catch_warnings():
        # Torch would rather have memory that can be written to; here that would be a fault.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for place in places.values():
            if place not in views:
                views[place] = _view(memory, place)
    return {name: views[place] for name, place in places.items()}


def _places(named: list[tuple[str, torch.Tensor]]) -> tuple[dict[str, TensorPlace], int]:
    places: dict[str, TensorPlace] = {}
    known: dict[tuple[object, ...], TensorPlace] = {}
    size = 0
    for name, tensor in named:
        # The tensor is alive as long as ``named``, so its address is its own.
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if key not in known or tensor.numel() == 0:
            dtype = str(tensor.dtype).removeprefix("torch.")
            known[key] = TensorPlace(size, dtype, tuple(tensor.shape), _dense_stride(tensor))
            size += -(-tensor.numel() * tensor.itemsize // _ALIGNMENT) * _ALIGNMENT
        places[name] = known[key]
    return places, max(size, 1)


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's own, if it has neither gaps nor overlaps; else that of a contiguous one."""
    return torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()


def _view(memory: mmap.mmap, place: TensorPlace) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    num_elements = 1
    for size in place.shape:
        num_elements *= size
    if num_elements == 0:
        return torch.empty(place.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=num_elements, offset=place.offset)
    return flat.as_strided(place.shape, place.stride)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("luthier-tensors")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
