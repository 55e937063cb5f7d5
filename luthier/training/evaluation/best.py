"""Which evaluation was best so far, and the parameters there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from luthier.training.optimization.learned_parameters import put_back


class BestSoFar:
    """The best value of one metric. NaN and missing values are never best.

    Args:
        higher_is_better: The metric's direction.
        step: Update of the best value; None before any.
        value: The best value.
        num_evaluations_since: Evaluations that were no better, since.
        parameters: Copies on the CPU, if they were kept.
    """

    def __init__(
        self,
        *,
        higher_is_better: bool = False,
        step: int | None = None,
        value: float | None = None,
        num_evaluations_since: int = 0,
        parameters: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.step = step
        self.value = value
        self.num_evaluations_since = num_evaluations_since
        self.parameters: Mapping[str, torch.Tensor] = parameters or {}
        self._higher_is_better = higher_is_better

    def look_at(self, value: float | None, *, step: int) -> None:
        """Compare a new value; an equal one is no better."""
        if value is not None and math.isfinite(value):
            is_better = self.value is None or (
                value > self.value if self._higher_is_better else value < self.value
            )
            if is_better:
                self.step, self.value, self.num_evaluations_since = step, value, 0
                return
        self.num_evaluations_since += 1

    def is_at(self, step: int) -> bool:
        """Whether the best evaluation is that after ``step`` updates."""
        return self.step == step

    def keep(self, named_parameters: Mapping[str, nn.Parameter]) -> None:
        """Copy the parameters as they are now."""
        self.parameters = _copied_here(named_parameters)

    def put_back(self, named_parameters: Mapping[str, nn.Parameter]) -> None:
        """Make the parameters what they were when they were kept; nothing if they never were."""
        if self.parameters:
            put_back(self.parameters, named_parameters)


def _copied_here(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU; of what is shared out, each process's own share where it is."""
    return {
        name: tensor.detach().clone()
        if isinstance(tensor, DTensor)
        else tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
