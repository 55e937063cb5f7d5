"""Linear layers that are quick with a few tokens, such as those of a step that decodes.

The matrix product of a CPU's library copies the weight into another order first; for a few tokens
that takes longer than the product. ``kernels/few_tokens.c`` multiplies by the weight as it lies.
``benchmarks/products.py`` measures both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from luthier.inference.kernels.library import can_read, kernel

#: Tokens up to which the kernel takes less time than PyTorch (up to about 100) or nearly the same:
#: a step's, so that the numbers of a row do not hang on what else is in its step.
MAX_TOKENS = 192
#: Of floats, that the kernel multiplies at once at most.
_VECTOR = 16


class FewTokensLinear(nn.Linear):
    """A linear layer on another's tensors, with our own product where there are few tokens.

    Args:
        base: The other; shared, not changed.

    Shape:
        forward: [..., in] -> [..., out].
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make tensors
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same as the other's, rounded in another order."""
        num_tokens = input.numel() // self.in_features
        weight, bias, multiply = self.weight, self.bias, _kernel()
        if (
            multiply is None
            or not 1 <= num_tokens <= MAX_TOKENS
            or input.shape[-1] != self.in_features
        ):
            return super().forward(input)
        rows = input.reshape(num_tokens, self.in_features).contiguous()
        # A network may have been moved or converted since its layers were replaced.
        if not can_read(rows, weight) or not (bias is None or can_read(bias)):
            return super().forward(input)
        output = rows.new_empty(num_tokens, self.out_features)
        multiply(
            rows.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            output.data_ptr(),
            num_tokens,
            self.in_features,
            self.out_features,
            self.in_features,
            self.out_features,
            torch.get_num_threads(),
        )
        return output.view(*input.shape[:-1], self.out_features)


def quicken_few_tokens(model: nn.Module) -> None:
    """Replace the layers of a network that gain by it.

    Args:
        model: A network of its own, whose tensors may be shared: they stay as they are. Nothing
            happens off the CPU, in other precisions, or where there are no kernels.
    """
    if _kernel() is None:
        return
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and _fits(layer):
            model.set_submodule(path, FewTokensLinear(layer))


def max_exact_tokens(device: torch.device, dtype: torch.dtype) -> int | None:
    """Tokens of a pass up to which the numbers of one do not depend on the others.

    Args:
        device: Of the network.
        dtype: Of its weights.

    Returns:
        None if no number of tokens promises that.
    """
    is_ours = device.type == "cpu" and dtype == torch.float32 and _kernel() is not None
    return MAX_TOKENS if is_ours else None


def _kernel() -> Callable[..., None] | None:
    return kernel("few_tokens", "pppp lllll i")


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(weight) is nn.Parameter
        and weight.is_cpu
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and layer.in_features > 0
        and layer.in_features % _VECTOR == 0
    )
