"""What T5-like attention adds to its scores for the distance between two tokens.

The bias depends on the distance alone, so one table serves rows of any length at any position:

```
    a new token after t - 1 others:   the last t entries of one row of the table
    n tokens that see each other:     the upper left n x n corner
```
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_SMALLEST = 64
_LARGEST_SQUARE = 512  # larger squares are made for the step and dropped


class RelativePositions:
    """The biases of one stack of layers, made by the stack's own layers.

    Args:
        stack: An encoder or a decoder.
    """

    def __init__(self, stack: nn.Module) -> None:
        self._sources: dict[int, Any] = {}
        for module in stack.modules():
            if getattr(module, "has_relative_attention_bias", False):
                self._sources[len(self._sources)] = module
        self._rows: dict[int, torch.Tensor] = {}
        self._squares: dict[int, torch.Tensor] = {}

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self._sources)

    def next_token(self, layer: int, num_tokens: int) -> torch.Tensor:
        """For the newest of ``num_tokens`` tokens of a decoder.

        Args:
            layer: Index of the layer.
            num_tokens: T, itself included.

        Returns:
            [1, H, 1, T].
        """
        index = self._source_of(layer)
        table = self._rows.get(index)
        if table is None or table.shape[3] < num_tokens:
            size = _size_for(num_tokens)
            table = self._sources[index].compute_bias(1, size, past_seen_tokens=size - 1)
            table = self._rows[index] = table.contiguous()
        return table[..., table.shape[3] - num_tokens :]

    def square(self, layer: int, num_tokens: int) -> torch.Tensor:
        """For tokens that stand at the beginning of their row.

        Args:
            layer: Index of the layer.
            num_tokens: T.

        Returns:
            Query position by key position, [1, H, T, T].
        """
        index = self._source_of(layer)
        table = self._squares.get(index)
        if table is None or table.shape[3] < num_tokens:
            size = _size_for(num_tokens)
            table = self._sources[index].compute_bias(size, size).contiguous()
            if size <= _LARGEST_SQUARE:
                self._squares[index] = table
        return table[..., :num_tokens, :num_tokens]

    def _source_of(self, layer: int) -> int:
        """Layers without biases of their own take those of the first."""
        return layer if len(self._sources) > 1 else 0


def _size_for(num_tokens: int) -> int:
    return max(_SMALLEST, 1 << (num_tokens - 1).bit_length())
