"""Linear layers that are quick with a few tokens.

A step that decodes has a token for each row. For 4 to 15 tokens the matrix product of the CPU's
library (MKL) takes longer than for 16, because it copies the weight into another order first; a
batched product over parts of the same weight does not. Measured with SmolLM2-135M on one core of a
Xeon with AVX-512, against one product, for 8 tokens: 0.7 of the time for the MLP's layers, 0.47 for
the logits of a vocabulary of 49,152; there it is 0.9 for 32 tokens and alike from 64 on.
"""

from __future__ import annotations

import torch
from torch import nn

_MIN_TOKENS, _MAX_TOKENS = 4, 15
#: Smaller weights stay in a core's cache, where both ways take the same time.
_MIN_WEIGHTS = 2**19
_NUM_PARTS = 16
#: Outputs from which on a layer is split for more tokens, too, and into smaller parts.
_MANY_OUTPUTS = 2**14
_NUM_PARTS_OF_MANY, _MAX_TOKENS_OF_MANY = 64, 63


class SplitLinear(nn.Linear):
    """A linear layer on another's tensors that splits its outputs where that is quicker.

    Args:
        base: The other; shared, not changed. Its outputs must have a divisor to split by.

    Shape:
        forward: [..., in] -> [..., out].
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make tensors
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._num_parts = _parts_of(self.out_features)
        is_large = self.out_features >= _MANY_OUTPUTS
        self._max_tokens = _MAX_TOKENS_OF_MANY if is_large else _MAX_TOKENS

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same as the other's, rounded in another order."""
        num_tokens = input.numel() // self.in_features
        if not _MIN_TOKENS <= num_tokens <= self._max_tokens:
            return super().forward(input)
        parts = self.weight.view(self._num_parts, -1, self.in_features)
        rows = input.reshape(num_tokens, self.in_features).expand(self._num_parts, -1, -1)
        output = torch.bmm(rows, parts.transpose(1, 2)).transpose(0, 1)
        output = output.reshape(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output.add_(self.bias)


def split_products(model: nn.Module) -> None:
    """Replace the layers of a network that gain by it.

    Args:
        model: A network of its own, whose tensors may be shared: they stay as they are. Nothing
            happens off the CPU, in other precisions, or where there is no MKL.
    """
    if not torch.backends.mkl.is_available():
        return
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and _gains(layer):
            model.set_submodule(path, SplitLinear(layer))


def _gains(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and weight.numel() >= _MIN_WEIGHTS
        and _parts_of(layer.out_features) > 1
    )


def _parts_of(num_outputs: int) -> int:
    """Into how many parts of one size the outputs are split; 1 if they cannot be."""
    wanted = _NUM_PARTS_OF_MANY if num_outputs >= _MANY_OUTPUTS else _NUM_PARTS
    return next((n for n in range(wanted, 4 * wanted) if num_outputs % n == 0), 1)
