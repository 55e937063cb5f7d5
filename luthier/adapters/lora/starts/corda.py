"""CorDA: the part of a weight that matters most, or least, to its inputs."""

from __future__ import annotations

import torch

from luthier.adapters.lora.initialisation import StartingFactors, low_rank_svd
from luthier.adapters.lora.starts.base import MORE_PARTS, NUM_ITERATIONS, LoraStart
from luthier.adapters.lora.starts.statistics import InputCovariance
from luthier.adapters.lora.targets import LoraTarget
from luthier.adapters.start_probe import InputProbe
from luthier.errors import TrainingDataError

#: CorDA adds this share of the mean variance to each input's, so that the covariance can be
#: inverted, and doubles it until the inverse is this near.
_FIRST_DAMPING = 0.01
_LARGEST_INVERSION_ERROR = 0.05


class CordaStart(LoraStart[InputCovariance], InputProbe):
    """Context-oriented decomposition.

    Source:
        Yang et al. 2024, arXiv 2406.05223; checked against PEFT 0.21.2.
    """

    parts_per_rank = 1
    #: A layer, its damped covariance and the inverse of that, from the last call.
    _inverted: tuple[str, torch.Tensor, torch.Tensor] | None = None

    def see_inputs(self, path: str, inputs: torch.Tensor, is_label: torch.Tensor | None) -> None:
        """Add a row to the layer's covariance; layers that read the same have one."""
        if self._leader_of(path, inputs) == path:
            self._statistics.setdefault(path, InputCovariance()).add(inputs)

    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        self._require_seen(path)
        covariance, inverse = self._damped_of(path)
        u, s, vh = self._decomposed(self._weight(path) @ covariance, target.rank)
        rank = target.rank
        chosen = slice(None, rank) if self.config.corda_method == "ipm" else slice(-rank, None)
        root = (s[chosen] / self.config.scaling(rank, target.alpha)).sqrt()
        lora_a = root[:, None] * (vh[chosen] @ inverse)
        return StartingFactors(lora_a, u[:, chosen] * root, is_subtracted=True)

    def _damped_of(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``_damped`` of what the layer reads; layers that read the same mostly come in a row."""
        leader = self._leaders[path]
        if self._inverted is None or self._inverted[0] != leader:
            self._inverted = (leader, *_damped(self._statistics[leader].mean.cpu(), path))
        return self._inverted[1:]

    def _decomposed(
        self, product: torch.Tensor, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Singular triples, the largest nearly: those that are least can only be had with all."""
        num_parts = MORE_PARTS * rank
        if self.config.corda_method == "ipm" and num_parts < min(product.shape) // 2:
            return low_rank_svd(product, num_parts, NUM_ITERATIONS, self._generator)
        u, s, vh = torch.linalg.svd(product, full_matrices=False)
        return u, s, vh


def _damped(covariance: torch.Tensor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The covariance with as much added to its diagonal as makes it invertible, and its inverse."""
    if not (bool(torch.isfinite(covariance).all()) and float(covariance.diagonal().sum()) > 0):
        raise TrainingDataError(
            f"initialisation 'corda': the inputs of layer {path!r} are all 0, or not finite"
        )
    unit = torch.eye(len(covariance))
    damping = _FIRST_DAMPING
    while True:
        fixed = covariance + unit * covariance.diagonal().mean() * damping
        inverse = torch.linalg.inv(fixed)
        if float(torch.dist(fixed @ inverse, unit)) < _LARGEST_INVERSION_ERROR:
            return fixed, inverse
        damping *= 2
