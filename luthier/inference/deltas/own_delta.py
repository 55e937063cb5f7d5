"""A linear layer with the delta of one adapter, for tokens that are all that adapter's."""

from __future__ import annotations

import torch
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.delta_kernel import KernelSpans, KernelStep, delta_kernel
from luthier.inference.deltas.delta_table import DeltaTable

_KEY = "own"


class OwnDelta(nn.Module):
    """A layer around another, which does not see all tokens of a step and so has no table in it.

    Args:
        base: ``nn.Linear`` or ``Conv1D``; shared, not changed.
        factors: The delta; copied.
        dtype: What it is computed in.
        device: Where.

    Shape:
        forward: [.., in] -> [.., out].

    Raises:
        NotSupportedError: If DoRA meets a quantised layer.
    """

    def __init__(
        self, base: nn.Module, factors: LoraFactors, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._base = (base,)  # not a part of this one
        table = DeltaTable(base, dtype=dtype, device=device)
        table.place(_KEY, factors)
        self._content = table.content
        self._kernel = delta_kernel(dtype, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output with the delta."""
        (base,) = self._base
        output: torch.Tensor = base(x)
        tokens, products = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        bias = getattr(base, "bias", None)
        if self._kernel is None:
            self._content.products[_KEY].add(products, tokens, bias)
        elif len(tokens):
            spans = KernelSpans([len(tokens)], [self._content.rows[_KEY]])
            KernelStep(self._kernel, [(spans, self._content)]).add(products, tokens, bias)
        return output
