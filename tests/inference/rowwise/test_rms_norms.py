from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated
from transformers.models.t5.modeling_t5 import T5LayerNorm

from luthier.inference.kernels.library import kernels
from luthier.inference.rowwise.rms_norms import quicken_norms, threads_for

pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")

NORMS = (LlamaRMSNorm, GemmaRMSNorm, Olmo2RMSNorm, T5LayerNorm, nn.RMSNorm)


def with_random_weight(layer: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    for each in layer.requires_grad_(False).parameters():
        each.copy_(torch.randn(each.shape, generator=generator))
    return layer


def make_norm(kind: Any, size: int) -> Any:
    return with_random_weight(kind(size, eps=1e-5))


def is_quick(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("size", [1, 3, 8, 16, 17, 64, 65, 127, 576, 1000])
def test_rows_are_those_of_double_precision(kind: Any, size: int) -> None:
    layer = make_norm(kind, size)
    own, weight = copy.deepcopy(layer), layer.weight.double() + (kind is GemmaRMSNorm)
    quicken_norms(layer)
    assert is_quick(layer)
    for num_rows in (1, 2, 7, 32, 100):
        x = torch.randn(1, num_rows, size, generator=torch.Generator().manual_seed(num_rows)) * 5
        exact = x.double()
        exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
        torch.testing.assert_close(layer(x).double(), exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer(x), own(x), rtol=1e-5, atol=1e-6)


def test_any_shape_and_order_of_inputs() -> None:
    layer = make_norm(LlamaRMSNorm, 32)
    own = copy.deepcopy(layer)
    quicken_norms(layer)
    for x in (
        torch.randn(32),
        torch.randn(2, 3, 5, 32),
        torch.randn(32, 6).t(),
        torch.randn(4, 64)[:, ::2],
        torch.randn(1, 32).expand(5, 32),
        torch.randn(0, 32),
        torch.randn(2, 32, dtype=torch.float64),
        torch.randn(2, 32).bfloat16(),
    ):
        torch.testing.assert_close(layer(x), own(x))
    torch.testing.assert_close(layer(hidden_states=torch.ones(2, 32)), own(torch.ones(2, 32)))
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 31))


def test_a_row_does_not_depend_on_those_beside_it_or_on_threads() -> None:
    layer = make_norm(LlamaRMSNorm, 1100)
    quicken_norms(layer)
    x, before = torch.randn(100, 1100), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = layer(x)
        torch.set_num_threads(3)
        assert threads_for(x.numel()) == 3
        assert torch.equal(layer(x), together)
    finally:
        torch.set_num_threads(before)
    for row in range(100):
        assert torch.equal(layer(x[row : row + 1]), together[row : row + 1])


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = make_norm(LlamaRMSNorm, 20)
    quicken_norms(layer)
    x = torch.randn(3, 20)
    x[1, 4] = torch.nan
    output = layer(x)
    assert output[1].isnan().all()
    assert output[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(16, bias=False),
        nn.LayerNorm(16),
        nn.RMSNorm(16),  # its epsilon is the dtype's
        nn.RMSNorm((4, 4), eps=1e-5),
        CohereLayerNorm(16, eps=1e-5),
        CohereLayerNorm((2, 16), eps=1e-5),
        Qwen3NextRMSNormGated(16),
        LlamaRMSNorm(16).double(),
        LlamaRMSNorm(16).bfloat16(),
        nn.Embedding(4, 16),
    ],
)
def test_other_layers_stay(layer: nn.Module) -> None:
    quicken_norms(with_random_weight(layer))
    assert not is_quick(layer)


def test_tensors_stay_and_networks_are_freed_at_once() -> None:
    norm = make_norm(LlamaRMSNorm, 16)
    network, weight = nn.Sequential(nn.Linear(4, 16), norm), norm.weight
    before = weight.clone()
    quicken_norms(network)
    network(torch.randn(2, 4))
    assert norm.weight is weight
    assert torch.equal(weight, before)
    gone = weakref.ref(norm)
    gc.disable()
    try:
        del norm, network
        assert gone() is None
    finally:
        gc.enable()


def test_gradients_flow_where_they_are_asked_for() -> None:
    layer, x = make_norm(LlamaRMSNorm, 20), torch.randn(3, 20, requires_grad=True)
    own = copy.deepcopy(layer)
    quicken_norms(layer)
    (expected,) = torch.autograd.grad(own(x).square().sum(), x)
    (given,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(given, expected)
