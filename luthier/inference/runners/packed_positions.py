"""Positions from tables for rows laid end to end.

Models that look positions up in a table (BART, Pegasus, Marian) count them from 0 to N - 1 over
whatever they are given. Their tables take positions from outside, too; that is used here. M2M100's
does not, so what it counts is replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding


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
            elif isinstance(module, M2M100SinusoidalPositionalEmbedding):
                module.forward = functools.partial(self._looked_up, module)

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

    def _looked_up(self, table: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What M2M100's table holds for the positions, [1, N, D]; it grows as its own would."""
        assert self._positions is not None
        places = self._positions + table.padding_idx + 1
        num_needed = int(places.max()) + 1
        if num_needed > len(table.weights):
            table.make_weights(num_needed + table.offset, table.embedding_dim, table.padding_idx)
        looked_up: torch.Tensor = table.weights[places][None]
        return looked_up


def _takes_positions(table: nn.Embedding) -> bool:
    return "position_ids" in inspect.signature(table.forward).parameters
