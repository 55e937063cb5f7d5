"""Several processes that train one adapter together: who they are, and what they tell each other.

Every process holds the model and the data, plans the same windows and takes its share of the rows
of each. Gradients are sums over rows, divided by the units of the whole window, so their sum over
processes is the gradient that one process would have computed from all rows::

    window of rows ──┬─► process 0: its rows ─► gradient ─┐
                     └─► process 1: its rows ─► gradient ─┴─► sum ─► the same update everywhere

Only process 0, the main one, writes files and tells callbacks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from luthier.errors import ConflictError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training. Every method but ``is_main`` is called by all, in one order.

    Args:
        process: Number of this one, from 0.
        num_processes: In all; one tells nobody anything.
        device: Where what is told has to be.
    """

    process: int = 0
    num_processes: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device cannot be changed

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and tells callbacks."""
        return self.process == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.num_processes == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in fp64: counts stay exact."""
        if self.is_alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        result: list[float] = summed.tolist()
        return result

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so."""
        return self.sum([float(flag)])[0] > 0

    def from_main(self, value: int) -> int:
        """The main process's number, below 2^63."""
        if self.is_alone:
            return value
        told = torch.tensor([value], dtype=torch.int64, device=self.device)
        distributed.broadcast(told, src=0)
        return int(told.item())

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, in their order.

        Args:
            items: JSON values; numbers keep every bit.

        Returns:
            Everybody's.
        """
        if self.is_alone:
            return list(items)
        own = torch.frombuffer(bytearray(json.dumps(list(items)).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self._gathered(torch.tensor([len(own)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = own
        parts = self._gathered(padded)
        return [
            item
            for part, size in zip(parts, sizes, strict=True)
            for item in json.loads(bytes(part[:size].tolist()))
        ]

    def sum_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Give every process the sum of the processes' gradients.

        Args:
            parameters: The same everywhere, in one order. One that has no gradient in this process
                counts as zero, and has one afterwards.
        """
        if self.is_alone:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            for bucket in _buckets(gradients):
                self._sum_bucket(bucket)

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with the main process's."""
        if self.is_alone:
            return
        for tensor in tensors:
            told = tensor.detach().to(self.device)
            distributed.broadcast(told, src=0)
            tensor.detach().copy_(told)

    def require_same(self, marks: Mapping[str, str]) -> None:
        """Refuse to train from things that differ between processes.

        Args:
            marks: Thing to a hash of it.

        Raises:
            ConflictError: Naming the first thing and process that differs; in every process.
        """
        everybody = self.gather([dict(marks)])
        for number, others in enumerate(everybody):
            for name, mark in everybody[0].items():
                if others.get(name) != mark:
                    raise ConflictError(
                        f"the processes of a training must agree, but {name} of process {number} "
                        f"differs from that of process 0"
                    )

    def _gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        tensor = tensor.to(self.device)
        parts = [torch.empty_like(tensor) for _ in range(self.num_processes)]
        distributed.all_gather(parts, tensor)
        return [part.cpu() for part in parts]

    def _sum_bucket(self, gradients: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
        summed = flat.to(self.device)
        distributed.all_reduce(summed)
        start = 0
        for gradient in gradients:
            part = summed[start : start + gradient.numel()]
            gradient.copy_(part.view_as(gradient))
            start += gradient.numel()


#: A training of one process.
ALONE = ProcessGroup()
#: Numbers that are told at once; the copy that this needs is that large.
_BUCKET_NUMBERS = 32 * 2**20


def current_group() -> ProcessGroup:
    """The processes that this one has joined; ``ALONE`` if none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    on_gpu = distributed.get_backend() == "nccl"
    return ProcessGroup(
        distributed.get_rank(),
        distributed.get_world_size(),
        torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
    )


@contextlib.contextmanager
def joined(environ: Mapping[str, str], *, on_cpu: bool) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started beside this one, for as long as this lasts.

    Args:
        environ: Where torchrun says how many they are and where they meet.
        on_cpu: Whether they train on the CPU; else each gets the GPU of its number.

    Yields:
        The group; ``ALONE`` without torchrun, or if it started one process.
    """
    if int(environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_group()
        return
    # Knows which backend goes with which device, and chooses the device.
    from accelerate import PartialState  # noqa: PLC0415 - slow to import, for few trainings

    PartialState(cpu=on_cpu)
    try:
        yield current_group()
    finally:
        distributed.destroy_process_group()
        PartialState._reset_state()


def _buckets(gradients: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET_NUMBERS:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
