"""A linear layer in the place of another one that it keeps."""

from __future__ import annotations

import torch
from torch import nn


class WrappedLinear(nn.Module):
    """What stands in the place of a linear layer, and looks like it to the model around it.

    Args:
        base: ``nn.Linear``, ``Conv1D`` or a quantised one; kept, shared, not changed.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight; some models look at its dtype."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias
