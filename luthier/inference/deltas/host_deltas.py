"""Deltas of adapters in host memory, for the next time that a GPU needs them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from luthier.adapters.lora.layers import LoraFactors


class HostDeltas:
    """Deltas by the adapter's key, the least recently used dropped first. Used by one thread.

    Args:
        max_bytes: Of all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Mapping[str, LoraFactors]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Mapping[str, LoraFactors] | None:
        """An adapter's deltas, or None."""
        deltas = self._entries.get(key)
        if deltas is not None:
            self._entries.move_to_end(key)
        return deltas

    def put(self, key: str, deltas: Mapping[str, LoraFactors]) -> None:
        """Keep an adapter's deltas, dropping others until they fit; what never fits is not kept."""
        num_bytes = _bytes_of(deltas)
        if num_bytes > self._max_bytes:
            return
        self._entries[key] = {path: _on_host(factors) for path, factors in deltas.items()}
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= _bytes_of(dropped)


def _tensors_of(factors: LoraFactors) -> list[torch.Tensor]:
    every = (
        factors.lora_a, factors.lora_b, factors.magnitude, factors.start_a, factors.start_b,
    )  # fmt: skip
    return [tensor for tensor in every if tensor is not None]


def _bytes_of(deltas: Mapping[str, LoraFactors]) -> int:
    return sum(tensor.nbytes for each in deltas.values() for tensor in _tensors_of(each))


def _on_host(factors: LoraFactors) -> LoraFactors:
    def moved(tensor: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.detach().cpu(), requires_grad=False)

    start_a, start_b = factors.start_a, factors.start_b
    return replace(
        factors,
        lora_a=moved(factors.lora_a),
        lora_b=moved(factors.lora_b),
        magnitude=None if factors.magnitude is None else moved(factors.magnitude),
        start_a=None if start_a is None else start_a.cpu(),
        start_b=None if start_b is None else start_b.cpu(),
    )
