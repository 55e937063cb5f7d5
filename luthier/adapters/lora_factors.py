"""What a low-rank delta beside a linear layer is made of, whoever computes it.

R is the rank; A is [R, in], B [out, R], the delta ``scaling · B · A``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The delta of one layer.

    Args:
        lora_a: [R, in].
        lora_b: [out, R].
        scaling: The delta's factor.
        magnitude: DoRA's learned length of each output's weights, [out]; None for plain LoRA.
        start_a: [R, in], with ``start_b`` a delta that is taken away again: what PiSSA and OLoRA
            started from. None where the start was no delta, or is none that counts.
        start_b: [out, R].
        trains_b: False if only A (and the magnitude) is learned.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    magnitude: nn.Parameter | None = None
    start_a: torch.Tensor | None = None
    start_b: torch.Tensor | None = None
    trains_b: bool = True

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the whole delta against the base weight: [R, in] and [out, R], or twice R
        with the start taken away."""
        if self.start_a is None or self.start_b is None:
            return self.lora_a, self.lora_b
        return (
            torch.cat([self.lora_a, self.start_a]),
            torch.cat([self.lora_b, -self.start_b], dim=1),
        )

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> LoraFactors:
        """The same around other tensors."""
        magnitude, start_a, start_b = self.magnitude, self.start_a, self.start_b
        return replace(
            self,
            lora_a=nn.Parameter(move(self.lora_a)),
            lora_b=nn.Parameter(move(self.lora_b)),
            magnitude=None if magnitude is None else nn.Parameter(move(magnitude)),
            start_a=None if start_a is None else move(start_a),
            start_b=None if start_b is None else move(start_b),
        )
