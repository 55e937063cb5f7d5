"""Linear layers that multiply whole numbers of 8 bits: an option for CPUs that do that quickly.

Each output has a scale of its own, and so has each token: its activations are divided by the
largest of them and rounded to one of 255 steps. So a row's numbers do not depend on the rows beside
it. Layers of the network in between are int8, the logits are not; the float weights stay, because
training and low-rank deltas need them: int8 takes a quarter of them on top.

What it costs in quality is measured by ``benchmarks/int8.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ConfigError
from luthier.inference.linear.few_tokens import FewTokensLinear

_STEPS, _ZERO = 127, 128


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
        self._packed = _packed(base.weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """About the same as the other's."""
        rows = input.reshape(-1, self.in_features)
        sizes = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        output = _multiply(rows / sizes, self._packed).mul_(sizes)
        if self.bias is not None:
            output.add_(self.bias)
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
    if not multiplies_exactly():
        raise ConfigError(
            "'inference.weights' is 'int8', but this CPU adds products of 8 bits in 16 (it has no "
            "VNNI), which spoils what a model says; use 'float'"
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


def multiplies_exactly() -> bool:
    """Whether sums of products of 8 bits do not overflow on this machine."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    largest = _multiply(torch.ones(4, 64), _packed(torch.ones(64, 64)))
    return bool((largest == 64).all())


def _fits(layer: Any) -> bool:
    weight = layer.weight
    return type(weight) is nn.Parameter and weight.dtype == torch.float32


def _packed(weight: torch.Tensor) -> Any:
    """A weight as the library's kernel wants it."""
    weight = weight.detach()
    scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _STEPS
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        # Announced as going away; packages are pinned, and no other way leads to this kernel.
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised, None)


def _multiply(rows: torch.Tensor, packed: Any) -> torch.Tensor:
    """Rows of numbers in [-1, 1] times a weight, [N, out]."""
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    output: torch.Tensor = kernel(rows, 1 / _STEPS, _ZERO, packed)
    return output
