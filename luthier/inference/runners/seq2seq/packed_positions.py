"""Positions from tables for rows laid end to end.

Models that look positions up in a table (BART, Pegasus, Marian) count them from 0 to N - 1 over
whatever they are given. Their tables take positions from outside, too; that is used here. Those of
LED, M2M100 and NLLB-MoE do not, so what they count is replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.led.modeling_led import LEDLearnedPositionalEmbedding
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSinusoidalPositionalEmbedding
from transformers.models.pegasus_x.modeling_pegasus_x import PegasusXSinusoidalPositionalEmbedding

_COMPUTED = (M2M100SinusoidalPositionalEmbedding, NllbMoeSinusoidalPositionalEmbedding)


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
            elif isinstance(module, PegasusXSinusoidalPositionalEmbedding):
                module.register_forward_pre_hook(self._replace_column, with_kwargs=True)
            elif isinstance(module, LEDLearnedPositionalEmbedding):
                module.forward = functools.partial(self._embedded, module)
            elif isinstance(module, _COMPUTED):
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

    def _replace_column(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pegasus-X multiplies positions by a row of frequencies."""
        assert self._positions is not None
        return args[:1], {**kwargs, "position_ids": self._positions[:, None]}

    def _embedded(self, table: nn.Embedding, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What LED's table holds for the positions, [N, D]."""
        assert self._positions is not None
        return torch.nn.functional.embedding(self._positions, table.weight)

    def _looked_up(self, table: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What a computed table holds for the positions, [1, N, D]; it grows as its own would."""
        assert self._positions is not None
        places = self._positions + table.padding_idx + 1
        num_needed = int(places.max()) + 1
        if num_needed > len(table.weights):
            table.make_weights(num_needed + table.offset, table.embedding_dim, table.padding_idx)
        looked_up: torch.Tensor = table.weights[places][None]
        return looked_up


def _takes_positions(table: nn.Embedding) -> bool:
    return "position_ids" in inspect.signature(table.forward).parameters
