"""Linear layers that multiply whole numbers of 8 bits: an option for CPUs that do that quickly.

Each output has a scale of its own, and so has each token: its activations are divided by the
largest of them and rounded to one of 255 steps. So a row's numbers do not depend on the rows beside
it. Layers of the network in between are int8, the logits are not; the float weights stay, because
training and low-rank deltas need them: int8 takes a quarter of them on top.

``kernels/int8_product.c`` multiplies; what it costs in quality is measured by
``benchmarks/int8.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ConfigError
from luthier.inference.kernels.library import can_read, kernel
from luthier.inference.linear.few_tokens import FewTokensLinear

_STEPS, _ZERO = 127, 128
#: What the kernel wants rows and outputs to be a multiple of.
_ROW_BYTES, _OUTPUTS = 64, 8
#: With more inputs a sum may not fit into 32 bits.
_MAX_INPUTS = 65536


class Int8Linear(nn.Linear):
    """A linear layer on another's tensors that multiplies whole numbers.

    Args:
        base: The other; shared, not changed.

    Shape:
        forward: [..., in] -> [..., out].
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make tensors
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._steps, self._scales = _rounded(base.weight.detach())
        self._offsets = self._steps.sum(dim=1, dtype=torch.int32) * _ZERO

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """About the same as the other's."""
        if input.numel() == 0 or input.shape[-1] != self.in_features:
            return super().forward(input)
        rows, bias = input.reshape(-1, self.in_features).contiguous(), self.bias
        if not can_read(rows) or not (bias is None or can_read(bias)):
            return super().forward(input)
        num_tokens, row_bytes = len(rows), self._steps.shape[1]
        output = rows.new_empty(num_tokens, self.out_features)
        rounded = torch.empty(num_tokens, row_bytes, dtype=torch.uint8)
        sizes = rows.new_empty(num_tokens)
        multiply = _kernel()
        assert multiply is not None  # or there would be no such layer
        multiply(
            rows.data_ptr(),
            self._steps.data_ptr(),
            self._scales.data_ptr(),
            self._offsets.data_ptr(),
            None if bias is None else bias.data_ptr(),
            output.data_ptr(),
            rounded.data_ptr(),
            sizes.data_ptr(),
            num_tokens,
            self.in_features,
            self.out_features,
            row_bytes,
            torch.get_num_threads(),
        )
        return output.view(*input.shape[:-1], self.out_features)


def use_int8_weights(model: PreTrainedModel) -> int:
    """Replace the layers between embeddings and logits by int8 ones.

    Args:
        model: A network of its own, whose tensors may be shared: they stay as they are.

    Returns:
        How many were replaced; layers in other precisions than float32 are not.

    Raises:
        ConfigError: If this machine cannot.
    """
    device = model.device.type
    if device != "cpu":
        raise ConfigError(
            f"'inference.weights' is 'int8', which is for CPUs; got device {device!r}"
        )
    if not multiplies_int8():
        raise ConfigError(
            "'inference.weights' is 'int8', which needs a CPU with AVX512-VNNI and the kernels "
            "that are compiled when Luthier is installed; use 'float'"
        )
    head = model.get_output_embeddings()
    found = {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) in (nn.Linear, FewTokensLinear) and layer is not head and _fits(layer)
    }
    for path, layer in found.items():
        model.set_submodule(path, Int8Linear(layer))
    return len(found)


def multiplies_int8() -> bool:
    """Whether this machine multiplies whole numbers of 8 bits, and there is a kernel for it."""
    ask = kernel("has_int8_product", "p")
    if ask is None:
        return False
    answer = ctypes.c_int()
    ask(ctypes.byref(answer))
    return bool(answer.value)


def _kernel() -> Callable[..., None] | None:
    return kernel("int8_product", "pppppppp llll i")


def _fits(layer: Any) -> bool:
    weight = layer.weight
    return (
        type(weight) is nn.Parameter
        and weight.dtype == torch.float32
        and 0 < layer.in_features <= _MAX_INPUTS
    )


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in whole numbers and what one of them is worth, filled up to what the kernel wants.

    Args:
        weight: [out, in].

    Returns:
        int8 and float32; [rows, bytes] and [rows].
    """
    num_outputs, num_inputs = weight.shape
    shape = (-(-num_outputs // _OUTPUTS) * _OUTPUTS, -(-num_inputs // _ROW_BYTES) * _ROW_BYTES)
    sizes = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    steps = torch.zeros(shape, dtype=torch.int8)
    steps[:num_outputs, :num_inputs] = (weight / sizes[:, None] * _STEPS).round_()
    scales = torch.ones(len(steps))
    scales[:num_outputs] = sizes / _STEPS
    return steps, scales
