"""Products with a frozen weight and, perhaps, a learned delta, for functions that go back alone.

N rows, rank R::

    output = rows Wᵀ + low Bᵀ        low = s · rows Aᵀ  [N, R]

Everything is added up where it is, which autograd by itself would copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from luthier.adapters.lora.layers import LoraLinear


class FrozenProduct(NamedTuple):
    """A linear layer without a bias.

    Args:
        weight: W, frozen, [out, in].
        lora_a: A of its delta, [R, in]; None if it has none.
        lora_b: B of its delta, [out, R].
        scaling: s.
    """

    weight: torch.Tensor
    lora_a: torch.Tensor | None = None
    lora_b: torch.Tensor | None = None
    scaling: float = 1.0

    def run(
        self, rows: torch.Tensor, *, onto: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product.

        Args:
            rows: [N, in].
            onto: Added to the product, [N, out]; not changed.

        Returns:
            The output, [N, out], and ``low``, to be kept for the way back.
        """
        weight, lora_a, lora_b, scaling = self
        output = rows @ weight.T if onto is None else torch.addmm(onto, rows, weight.T)
        if lora_a is None or lora_b is None:
            return output, None
        low = (rows @ lora_a.T).mul_(scaling)
        return output.addmm_(low, lora_b.T), low

    def grad_of_low(self, grad: torch.Tensor) -> torch.Tensor | None:
        """The gradient of ``rows Aᵀ``, [N, R], from the output's; None without a delta."""
        return None if self.lora_b is None else (grad @ self.lora_b).mul_(self.scaling)

    def grad_of_rows(
        self,
        grad: torch.Tensor,
        grad_low: torch.Tensor | None,
        *,
        onto: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The gradient of the rows.

        Args:
            grad: Of the output, [N, out].
            grad_low: From ``grad_of_low``.
            onto: What it is added to, in place, [N, in]; a new tensor if None.

        Returns:
            [N, in].
        """
        grad_rows = grad @ self.weight if onto is None else onto.addmm_(grad, self.weight)
        if grad_low is not None and self.lora_a is not None:
            grad_rows.addmm_(grad_low, self.lora_a)
        return grad_rows


def flat(products: Sequence[FrozenProduct]) -> tuple[torch.Tensor | None, ...]:
    """The products' tensors in a row, as a function of autograd must get them."""
    return tuple(tensor for product in products for tensor in product[:3])


def unflat(
    tensors: Sequence[torch.Tensor | None], scalings: Sequence[float]
) -> list[FrozenProduct]:
    """What ``flat`` made flat.

    Args:
        tensors: From ``flat``.
        scalings: Of each product.
    """
    triples = zip(*(tensors[first::3] for first in range(3)), scalings, strict=True)
    return [FrozenProduct(*each) for each in triples]


def grads_of_factors(
    grad: torch.Tensor,
    grad_low: torch.Tensor | None,
    rows: torch.Tensor | None,
    low: torch.Tensor | None,
) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of one product's three tensors.

    Args:
        grad: Of the output, [N, out].
        grad_low: Of ``rows Aᵀ``, [N, R]; None without a delta.
        rows: As they were, [N, in]; not needed without a delta.
        low: From ``run``.

    Returns:
        None for the weight, then those of A and B.
    """
    if grad_low is None or rows is None or low is None:
        return None, None, None
    return None, grad_low.T @ rows, grad.T @ low


def frozen_product_of(layer: nn.Module, x: torch.Tensor) -> FrozenProduct | None:
    """What a layer does to ``x``, if that is a frozen product with or without a plain delta.

    Args:
        layer: Any.
        x: What it would read.

    Returns:
        The product; None if the layer must be asked itself.
    """
    if isinstance(layer, LoraLinear):
        base = frozen_product_of(layer.base, x) if layer.is_plain(x) else None
        return base and FrozenProduct(base.weight, *layer.stacked(), layer.scaling)
    is_frozen = (
        type(layer) is nn.Linear
        and layer.bias is None
        and layer.weight.dtype == x.dtype
        and not layer.weight.requires_grad
    )
    return FrozenProduct(layer.weight) if is_frozen else None  # type: ignore[arg-type]
