"""Learned positions for rows laid end to end.

Models that look positions up in a table (BART, Pegasus, Marian) count them from 0 to N - 1 over
whatever they are given. Their tables take positions from outside, too; that is used here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class PackedPositions:
    """Tells a network's position tables where each packed token stands in its own row.

    Args:
        model: A network that runs packed rows only. Its tables are watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._positions: torch.Tensor | None = None
        for module in model.modules():
            if isinstance(module, nn.Embedding) and _takes_positions(module):
                module.register_forward_pre_hook(self._replace, with_kwargs=True)

    def set(self, positions: Sequence[int], device: torch.device) -> None:
        """Say where the tokens of the next forward pass stand.

        Args:
            positions: Of each token in its row, [N].
            device: Of the network.
        """
        self._positions = torch.tensor(positions, dtype=torch.long, device=device)

    def _replace(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "position_ids": self._positions}


def _takes_positions(table: nn.Embedding) -> bool:
    return "position_ids" in inspect.signature(table.forward).parameters
