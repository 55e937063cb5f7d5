"""The arithmetic of LoRA: a linear layer with a low-rank delta beside it.

R is the rank; A is [R, in], B [out, R], the delta ``scaling · B · A``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from luthier.adapters.checksums import versions_of
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.wrapped_linear import WrappedLinear
from luthier.errors import NotSupportedError


class LoraLinear(WrappedLinear):
    """A frozen linear layer and its delta.

    The delta is computed in the factors' dtype and added in the layer's own. Dropout acts where a
    gradient is recorded, so neither evaluation nor generation sees it.

    Args:
        base: ``nn.Linear`` or ``Conv1D``; kept, shared, not changed.
        factors: Their parameters become this layer's.
        dropout: Share of the delta's input to drop.

    Shape:
        forward: [.., in] -> [.., out], dtype of ``base``.

    Source:
        Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353, whose section
        4.3 lets no gradient through the norm.
    """

    start_a: torch.Tensor | None
    start_b: torch.Tensor | None

    def __init__(self, base: nn.Module, factors: LoraFactors, *, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.lora_a = factors.lora_a
        self.lora_b = factors.lora_b
        self.magnitude = factors.magnitude
        self.scaling = factors.scaling
        self.register_buffer("start_a", factors.start_a, persistent=False)
        self.register_buffer("start_b", factors.start_b, persistent=False)
        self._drop_share = dropout
        self._base_squares: torch.Tensor | None = None
        self._norm: tuple[tuple[int, ...], torch.Tensor] | None = None
        self.training = base.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output with the delta."""
        if self.is_plain(x):
            weight, bias = oriented_weight(self.base), self.bias
            return _FusedLora.apply(  # type: ignore[no-any-return, no-untyped-call]
                x, weight, bias, *self.stacked(), self.scaling
            )
        return self.add_delta(x, self.base(x))

    def add_delta(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The output with the delta.

        Args:
            x: What the layer reads, [.., in].
            output: The base layer's, [.., out]; without gradients it may be changed in place.

        Returns:
            [.., out], dtype of ``output``.
        """
        lora_a, lora_b = self.stacked()
        inner = x if x.dtype == lora_a.dtype else x.to(lora_a.dtype)
        is_dropping = self._drop_share > 0 and torch.is_grad_enabled()
        if is_dropping:
            inner = functional.dropout(inner, self._drop_share)
        low = functional.linear(inner, lora_a)
        # Scaling the R numbers is cheaper than scaling the outputs.
        delta = functional.linear(low if self.scaling == 1 else low * self.scaling, lora_b)
        if self.magnitude is None:
            is_spare = delta.dtype == output.dtype and not torch.is_grad_enabled()
            result = output.add_(delta) if is_spare else output + delta
        else:
            scale = self.magnitude / self._weight_norm(lora_a, lora_b)
            dropped = inner if is_dropping else None
            result = self._with_magnitude(output, delta, scale, dropped)
        return result if result.dtype == output.dtype else result.to(output.dtype)

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn where a gradient is recorded."""
        return self._drop_share > 0

    def is_plain(self, x: torch.Tensor) -> bool:
        """Whether the plain delta of a frozen float layer is to be learned, all in one dtype.

        Args:
            x: What the layer reads.

        Returns:
            True if all there is to do is ``x Wᵀ + bias + s (x Aᵀ) Bᵀ``.
        """
        weight = self.weight
        return (
            self.magnitude is None
            and torch.is_grad_enabled()
            and self._drop_share == 0
            and type(self.base) in (nn.Linear, Conv1D)
            and not weight.requires_grad
            and x.dtype == weight.dtype == self.lora_a.dtype
            and not torch.is_autocast_enabled(x.device.type)
        )

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``LoraFactors.stacked``."""
        lora_a, lora_b, start_a, start_b = self.lora_a, self.lora_b, self.start_a, self.start_b
        if start_a is None or start_b is None:
            return lora_a, lora_b
        return torch.cat([lora_a, start_a]), torch.cat([lora_b, -start_b], dim=1)

    def _with_magnitude(
        self,
        output: torch.Tensor,
        delta: torch.Tensor,
        scale: torch.Tensor,
        dropped: torch.Tensor | None,
    ) -> torch.Tensor:
        """``scale · (W x + delta) + bias``; with dropout, what is dropped is dropped for W too, but
        only in the part that the scale adds."""
        if dropped is not None:
            direct = functional.linear(dropped, oriented_weight(self.base).to(dropped.dtype))
            return output + (scale - 1) * direct + scale * delta
        bias = self.bias
        if bias is None:
            return scale * (output + delta)
        return scale * (output - bias + delta) + bias

    def _weight_norm(self, lora_a: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
        """Length of each row of ``W + scaling · B · A``, [out], as a constant.

        Computed anew where a gradient is recorded; otherwise kept until a factor changes.
        """
        versions = None if torch.is_grad_enabled() else versions_of(self.lora_a, self.lora_b)
        if versions is not None and self._norm is not None and self._norm[0] == versions:
            return self._norm[1]
        with torch.no_grad():
            weight = oriented_weight(self.base).to(lora_a.dtype)
            if self._base_squares is None:
                self._base_squares = weight.square().sum(dim=1)
            norm = (self._base_squares + squares_added(weight, lora_a, lora_b, self.scaling)).sqrt()
        self._norm = None if versions is None else (versions, norm)
        return norm


class _FusedLora(torch.autograd.Function):
    """``x Wᵀ + bias + s (x Aᵀ) Bᵀ``, adding up in place where autograd by itself would copy.

    About half of what a delta costs beside its layer is saved; the gradients are the same.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ lora_a.T).mul_(scaling)
        output = functional.linear(rows, weight, bias).addmm_(low, lora_b.T)
        ctx.save_for_backward(rows, weight, lora_a, lora_b, low)
        ctx.scaling, ctx.shape = scaling, x.shape
        # No view, because LED's layers divide what they are given in place.
        shaped: torch.Tensor = torch.ops.aten._unsafe_view(output, [*x.shape[:-1], len(weight)])
        return shaped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, lora_a, lora_b, low = ctx.saved_tensors
        grad = grad_output.reshape(-1, grad_output.shape[-1])
        grad_low = (grad @ lora_b).mul_(ctx.scaling)
        grad_a = grad_low.T @ rows if ctx.needs_input_grad[3] else None
        grad_b = grad.T @ low if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, lora_a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def oriented_weight(layer: nn.Module) -> torch.Tensor:
    """A linear layer's weight as [out, in]; a view.

    Args:
        layer: ``nn.Linear`` or ``Conv1D``.

    Returns:
        The weight, or its transpose; of a layer of ``resources.quantised_layers``, what its
        numbers stand for, made anew.

    Raises:
        NotSupportedError: If the weight is quantised by others.
    """
    dequantise = getattr(layer, "dequantised_weight", None)
    if dequantise is not None:
        numbers: torch.Tensor = dequantise()
        return numbers
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    # bitsandbytes keeps 4-bit weights in subclasses of Parameter, sometimes under a float dtype.
    is_plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_floating_point()
    if not is_plain or weight.ndim != 2:
        raise NotSupportedError(
            f"the weight of a {type(layer).__name__} is quantised; this needs its numbers"
        )
    return weight.T if isinstance(layer, Conv1D) else weight


def squares_added(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """How much the squared length of each row of W grows with the delta, [out].

    ``|w + s·b·A|² - |w|² = 2s·(w·Aᵀ)·b + s²·b·(A·Aᵀ)·b``: the product B · A is never formed.

    Args:
        weight: [out, in].
        lora_a: [R, in].
        lora_b: [out, R].
        scaling: s.

    Returns:
        May be negative.
    """
    across = ((weight @ lora_a.T) * lora_b).sum(dim=1)
    own = ((lora_b @ (lora_a @ lora_a.T)) * lora_b).sum(dim=1)
    return across * (2 * scaling) + own * scaling**2
