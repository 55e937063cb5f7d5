from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from luthier.inference.kernels.library import kernels
from luthier.inference.rowwise.gated_mlps import quicken_gates

pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")


class ScaledMlp(LlamaMLP):  # type: ignore[misc]
    """Made of the same layers, and does something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = super().forward(x)
        return 2 * output


def make_mlp(size: int = 12, *, activation: str = "silu", kind: Any = LlamaMLP) -> Any:
    torch.manual_seed(2)
    config = LlamaConfig(
        hidden_size=8, intermediate_size=size, hidden_act=activation, num_attention_heads=1
    )
    return kind(config).requires_grad_(False)


LARGE_AND_SMALL = [-3e38, -1e30, -3e4, 3e4, 1e30, 0.0, -0.0, 1e-40, -1e-40, torch.nan]


def is_quick(part: nn.Module) -> bool:
    return "forward" in vars(part)


@pytest.mark.parametrize("activation", ["silu", "swish", "gelu_pytorch_tanh", "gelu_new"])
@pytest.mark.parametrize("size", [1, 15, 16, 33, 400])
def test_numbers_are_those_of_double_precision(activation: str, size: int) -> None:
    part = make_mlp(size, activation=activation)
    own, exact = copy.deepcopy(part), copy.deepcopy(part).double()
    quicken_gates(part)
    assert is_quick(part)
    for num_rows in (1, 3, 32):
        x = torch.randn(1, num_rows, 8, generator=torch.Generator().manual_seed(num_rows)) * 20
        limit = 1e-6 * float(own(x).abs().max())
        torch.testing.assert_close(part(x).double(), exact(x.double()), rtol=1e-5, atol=limit)
        torch.testing.assert_close(part(x), own(x), rtol=1e-5, atol=limit)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_each_number_is_near_however_large(activation: str) -> None:
    part = make_mlp(1, activation=activation)
    for layer in (part.gate_proj, part.up_proj, part.down_proj):
        nn.init.zeros_(layer.weight)
    part.gate_proj.weight[0, 0] = part.up_proj.weight[0, 1] = part.down_proj.weight[0, 0] = 1
    quicken_gates(part)
    gates = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor(LARGE_AND_SMALL)])
    x = torch.zeros(len(gates), 8)
    x[:, 0], x[:, 1] = gates, 1
    exact = ACT2FN[activation](gates.double())
    torch.testing.assert_close(part(x)[:, 0].double(), exact, rtol=1e-5, atol=1e-9, equal_nan=True)


def test_known_models_parts_are_found() -> None:
    part = GemmaMLP(
        GemmaConfig(hidden_size=8, intermediate_size=20, num_attention_heads=1)
    ).requires_grad_(False)
    quicken_gates(part)
    assert is_quick(part)


def test_a_row_does_not_depend_on_those_beside_it_or_on_threads() -> None:
    part = make_mlp(1000)
    quicken_gates(part)
    x, before = torch.randn(100, 8), torch.get_num_threads()
    part.gate_proj.forward = part.up_proj.forward = lambda x: x.repeat(1, 125)
    part.down_proj.forward = lambda x: x
    try:
        torch.set_num_threads(1)
        together = part(x)
        torch.set_num_threads(3)
        assert torch.equal(part(x), together)
    finally:
        torch.set_num_threads(before)
    for row in range(100):
        assert torch.equal(part(x[row : row + 1]), together[row : row + 1])


def test_layers_that_are_put_in_its_place_are_used() -> None:
    part = make_mlp()
    quicken_gates(part)
    part.up_proj = make_mlp().gate_proj
    part.down_proj = nn.Sequential(part.down_proj, nn.Tanh())
    x = torch.randn(3, 8)
    gate = nn.functional.silu(part.gate_proj(x))
    torch.testing.assert_close(part(x), part.down_proj(gate * part.up_proj(x)))


def test_other_precisions_go_the_parts_own_way() -> None:
    part = make_mlp()
    own = copy.deepcopy(part).double()
    quicken_gates(part)
    x = torch.randn(3, 8).double()
    torch.testing.assert_close(part.double()(x), own(x))


@pytest.mark.parametrize(
    "part",
    [
        make_mlp(activation="gelu"),  # the exact one
        make_mlp(activation="relu"),
        make_mlp(kind=ScaledMlp),
        make_mlp().double(),
        make_mlp().bfloat16(),
        nn.Linear(8, 8),
    ],
)
def test_other_parts_stay(part: nn.Module) -> None:
    quicken_gates(part)
    assert not is_quick(part)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_what_is_no_number_stays_none_however_it_is_written(activation: str) -> None:
    part = make_mlp(activation=activation)
    quicken_gates(part)
    written = torch.tensor([0x7FC00000, 0x7FC00001, 0x7FC001FF, -1, 0x7F800001, -4194304, -8388608])
    part.gate_proj.forward = lambda x: written.int().view(torch.float32)[:, None].repeat(1, 12)
    part.up_proj.forward = lambda x: torch.ones(7, 12)
    part.down_proj.forward = lambda x: x
    assert part(torch.zeros(7, 8)).isnan().all()


def test_gradients_flow_where_they_are_asked_for() -> None:
    part, x = make_mlp(), torch.randn(3, 8, requires_grad=True)
    own = copy.deepcopy(part)
    quicken_gates(part)
    (expected,) = torch.autograd.grad(own(x).sum(), x)
    (given,) = torch.autograd.grad(part(x).sum(), x)
    torch.testing.assert_close(given, expected)
