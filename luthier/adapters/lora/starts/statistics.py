"""What the starts of LoRA that look at data keep of what a layer reads: sums and principal parts.

All in fp32 on the device of the layer. D is the size of a layer's input.
"""

from __future__ import annotations

import torch

from luthier.adapters.lora.initialisation import low_rank_svd

#: Subspace iterations of a decomposition that only needs the largest parts.
_NUM_ITERATIONS = 4


class InputComponents:
    """The directions in which a layer's inputs differ most, found batch by batch.

    Only the components themselves are kept between batches, [C, D].

    Args:
        num_components: C.

    Source:
        Incremental PCA: Ross et al. 2008, https://doi.org/10.1007/s11263-007-0075-7, as EVA uses
        it (Paischer et al. 2024, arXiv 2410.07170).
    """

    def __init__(self, num_components: int) -> None:
        self.num_components = num_components
        self.num_seen = 0
        self._waiting: list[torch.Tensor] = []
        self._mean = torch.zeros(0)
        self._variance_sum = 0.0
        self._components = torch.zeros(0)
        self._singular_values = torch.zeros(0)

    @property
    def is_fitted(self) -> bool:
        """Whether enough was seen for as many components."""
        return self.num_seen > 0

    @property
    def num_waiting(self) -> int:
        """Inputs that are too few to be looked at yet."""
        return sum(map(len, self._waiting))

    @property
    def components(self) -> torch.Tensor:
        """Orthonormal rows, the most important first, [C, D]."""
        return self._components

    @property
    def singular_values(self) -> torch.Tensor:
        """Of the centred inputs, [C]."""
        return self._singular_values

    @property
    def explained_share(self) -> torch.Tensor:
        """Share of the inputs' variance that each component has, [C]."""
        return self._singular_values.square() / self._variance_sum

    def add(self, inputs: torch.Tensor) -> None:
        """Note inputs of the batch under way, [N, D]."""
        self._waiting.append(inputs.detach().float().clone())

    def end_batch(self) -> None:
        """Look at what was noted, if it suffices; else it waits for the next batch's."""
        if self.num_waiting < self.num_components:
            return
        inputs = torch.cat(self._waiting)
        self._waiting = []
        count, mean = len(inputs), inputs.mean(dim=0)
        centred = inputs - mean
        spread = float(centred.square().sum())
        if self.num_seen:
            total = self.num_seen + count
            shift = (self._mean - mean) * (self.num_seen * count / total) ** 0.5
            known = self._singular_values[:, None] * self._components
            centred = torch.cat([known, centred, shift[None]])
            spread += float(shift.square().sum())
            mean = (self._mean * self.num_seen + mean * count) / total
        self._mean = mean
        self._variance_sum += spread
        self.num_seen += count
        self._decompose(centred)

    def _decompose(self, centred: torch.Tensor) -> None:
        num_parts = min(2 * self.num_components, *centred.shape)
        if num_parts == min(centred.shape):
            _, s, vh = torch.linalg.svd(centred, full_matrices=False)
        else:
            generator = torch.Generator().manual_seed(0)
            _, s, vh = low_rank_svd(centred, num_parts, _NUM_ITERATIONS, generator)
        vh, s = vh[: self.num_components], s[: self.num_components]
        # A singular vector has no sign of its own; one is chosen, so that runs agree.
        largest = vh.abs().argmax(dim=1, keepdim=True)
        self._components = vh * vh.gather(1, largest).sign()
        self._singular_values = s


class InputCovariance:
    """The mean of ``Xᵀ X`` over rows, each scaled to a largest number of 1: [D, D].

    Source:
        CorDA: Yang et al. 2024, arXiv 2406.05223; the scale of a row is that of PEFT 0.21.2.
    """

    def __init__(self) -> None:
        self._sum = torch.zeros(0)
        self._num_rows = 0

    @property
    def mean(self) -> torch.Tensor:
        """Over the rows that were added, [D, D]."""
        return self._sum / self._num_rows

    def add(self, inputs: torch.Tensor) -> None:
        """Add one row's inputs, [N, D]."""
        inputs = inputs.detach().float()
        largest = inputs.max().abs()
        inputs = inputs / torch.where(largest == 0, 1.0, largest)
        product = inputs.T @ inputs
        self._sum = self._sum.add_(product) if self._num_rows else product
        self._num_rows += 1


class WeightGradient:
    """The gradient of a layer's weight, summed: [out, in]. As large as the weight in fp32."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    @property
    def sum(self) -> torch.Tensor | None:
        """None if nothing was added."""
        return self._sum

    def add(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add one row's part.

        Args:
            inputs: What the layer read, [N, in].
            gradients: Of what it wrote, [N, out].
        """
        product = gradients.detach().float().T @ inputs.detach().float()
        self._sum = product if self._sum is None else self._sum.add_(product)
