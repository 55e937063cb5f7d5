"""Tensors whose shares lie in several processes, put together one at a time.

A whole state of full fine-tuning is several times the model. Where weights are shared out, nobody
holds that: the main process writes a tensor as soon as it is whole, and the others only give their
shares, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from luthier.training.processes.sharding import whole_tensor

#: The words of the format.
_DTYPE_WORDS: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class SharedOut(Mapping[str, torch.Tensor]):
    """Tensors by name; each is put together when it is asked for, by all processes.

    Args:
        tensors: Whole ones and shares, as they are; not copied.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return whole_tensor(self._tensors[name]).cpu().contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def header(self) -> dict[str, dict[str, object]]:
        """What a safetensors file says of them; needs no other process."""
        described: dict[str, dict[str, object]] = {}
        start = 0
        for name, tensor in self._tensors.items():
            stop = start + tensor.numel() * tensor.element_size()
            described[name] = {
                "dtype": _DTYPE_WORDS[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, stop],
            }
            start = stop
        return described


def is_shared_out(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of them is a share."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def give_shares(tensors: Mapping[str, torch.Tensor]) -> None:
    """Take part in what another process writes, and keep nothing."""
    if isinstance(tensors, SharedOut):
        for name in tensors:
            tensors[name]


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; of what is shared out, one tensor at a time.

    Args:
        tensors: The others call ``give_shares`` with theirs, if they are shared out.
        path: The file.
    """
    if not isinstance(tensors, SharedOut):
        save_file(dict(tensors), path)
        return
    header = json.dumps(tensors.header()).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in tensors:
            whole = tensors[name].reshape(-1)
            file.write(whole.view(torch.uint8).numpy().data)
