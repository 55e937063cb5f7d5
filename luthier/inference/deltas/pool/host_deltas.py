"""What adapters do to layers, in host memory, for the next time that a GPU needs it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.layer_changes import LayerChanges


class HostDeltas:
    """Changes by the adapter's key, the least recently used dropped first. Used by one thread.

    Args:
        max_bytes: Of all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, LayerChanges] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> LayerChanges | None:
        """What an adapter does, or None."""
        changes = self._entries.get(key)
        if changes is not None:
            self._entries.move_to_end(key)
        return changes

    def put(self, key: str, changes: LayerChanges) -> None:
        """Keep what an adapter does, dropping others until it fits; what never fits is not kept."""
        num_bytes = _bytes_of(changes)
        if num_bytes > self._max_bytes:
            return
        memo: dict[int, Any] = {}  # what layers share stays shared
        self._entries[key] = LayerChanges(
            {path: factors.moved(_on_host) for path, factors in changes.deltas.items()},
            {path: copy.deepcopy(each, memo).cpu() for path, each in changes.modules.items()},
            None if changes.rows is None else changes.rows.moved(_on_host),
        )
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= _bytes_of(dropped)


def _tensors_of(factors: LoraFactors) -> list[torch.Tensor]:
    every = (
        factors.lora_a, factors.lora_b, factors.magnitude, factors.start_a, factors.start_b,
    )  # fmt: skip
    return [tensor for tensor in every if tensor is not None]


def _bytes_of(changes: LayerChanges) -> int:
    tensors = [tensor for each in changes.deltas.values() for tensor in _tensors_of(each)]
    for layer in changes.modules.values():
        tensors += [*layer.parameters(), *layer.buffers()]
    if changes.rows is not None:
        tensors.append(changes.rows.rows)
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()
