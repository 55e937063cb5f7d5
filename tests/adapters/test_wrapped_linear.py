"""What a model sees of a layer that was replaced."""

import torch
from torch import nn

from luthier.adapters.wrapped_linear import WrappedLinear


def test_it_has_the_tensors_of_the_layer_that_it_keeps() -> None:
    layer = nn.Linear(3, 2)
    wrapped = WrappedLinear(layer)
    assert wrapped.base is layer
    assert wrapped.weight is layer.weight
    assert wrapped.bias is layer.bias
    assert WrappedLinear(nn.Linear(3, 2, bias=False)).bias is None
    assert wrapped.weight.dtype == torch.float32
