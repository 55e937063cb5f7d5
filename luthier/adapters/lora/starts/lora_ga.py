"""LoRA-GA: the largest parts of the weight's gradient."""

from __future__ import annotations

import torch

from luthier.adapters.lora.initialisation import StartingFactors, low_rank_svd
from luthier.adapters.lora.starts.base import MORE_PARTS, NUM_ITERATIONS, LoraStart
from luthier.adapters.lora.starts.statistics import WeightGradient
from luthier.adapters.lora.targets import LoraTarget
from luthier.adapters.start_probe import GradientProbe
from luthier.errors import TrainingDataError


class GradientStart(LoraStart[WeightGradient], GradientProbe):
    """Low-rank adaptation with gradient approximation (LoRA-GA).

    Source:
        Wang et al. 2024, arXiv 2407.05000; directions and scales are PEFT 0.21.2's.
    """

    parts_per_rank = 2

    def see_gradients(self, path: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add a row's part of the weight's gradient."""
        self._statistics.setdefault(path, WeightGradient()).add(inputs, gradients)

    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        total = self._statistics.pop(path, WeightGradient()).sum
        if total is None or not bool(total.any()):
            raise TrainingDataError(
                f"initialisation 'lora_ga': in the first {self._num_batches_seen} batches the loss "
                f"does not depend on layer {path!r}; leave it out with 'exclude_modules'"
            )
        gradient = total.cpu() / self._num_batches_seen
        rank, scaling = target.rank, self.config.scaling(target.rank, target.alpha)
        num_parts = min(MORE_PARTS * rank, *gradient.shape)
        u, s, vh = low_rank_svd(gradient, num_parts, NUM_ITERATIONS, self._generator)
        for_a, for_b = self._directions(rank)
        lora_a, lora_b = vh[for_a].clone(), u[:, for_b] * s[for_b]
        scale = self.config.lora_ga_scale
        if scale == "stable":
            lora_b *= target.out_features**0.25 / self.config.lora_ga_gamma**0.5
        elif scale == "weight_svd":
            largest = low_rank_svd(self._weight(path), rank, NUM_ITERATIONS, self._generator)[1]
            lora_b *= largest[0] / s[for_b][0]
        elif scale == "gd_scale":
            lora_a, lora_b = lora_a / scaling, lora_b / scaling
        return StartingFactors(lora_a, lora_b, is_subtracted=True)

    def _directions(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the gradient's 2·R largest parts A and B are made of."""
        parts = torch.arange(2 * rank)
        direction = self.config.lora_ga_direction
        if direction == "ArBr":
            return parts[1::2], parts[0::2]
        if direction == "A2rBr":
            return parts[rank:], parts[:rank]
        if direction == "ArB2r":
            return parts[:rank], parts[rank:]
        drawn = torch.randperm(2 * rank, generator=self._generator)[:rank]
        return drawn, drawn
