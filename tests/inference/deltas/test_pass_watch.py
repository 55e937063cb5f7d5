from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.inference.deltas.pass_watch import PassWatch

N, D = 6, 4


class NeighbourSum(nn.Module):
    """Each token with the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + x.roll(1, dims=1)) * self.weight


class CountedPositions(nn.Embedding):
    """Positions that the layer counts itself, as BART's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.arange(x.shape[1])[None])


def tokens(*sizes: int) -> torch.Tensor:
    return torch.randn(1, *sizes, generator=torch.Generator().manual_seed(1))


def once(x: torch.Tensor) -> Callable[[nn.Module], object]:
    return lambda layer: layer(x)


@pytest.mark.parametrize(
    ("layer", "call", "expected"),
    [
        pytest.param(nn.Linear(D, 3), once(tokens(N, D)), True, id="a line of tokens"),
        pytest.param(nn.Linear(D, 3), once(tokens(N, D)[0]), False, id="tokens without rows"),
        pytest.param(nn.Linear(D, 3), once(tokens(N - 1, D)), False, id="a token too few"),
        pytest.param(
            nn.Linear(D, 3),
            lambda layer: (layer(tokens(N, D)), layer(tokens(N, D))),
            False,
            id="twice",
        ),
        pytest.param(nn.Linear(D, 3), lambda layer: None, False, id="not at all"),
        pytest.param(nn.Linear(D, 3), lambda layer: layer(input=tokens(N, D)), False, id="by name"),
        pytest.param(nn.Embedding(9, D), once(torch.arange(N)[None]), True, id="an embedding"),
        pytest.param(
            CountedPositions(9, D),
            once(torch.arange(N)[None]),
            False,
            id="an embedding that counts",
        ),
        pytest.param(nn.LayerNorm(D), once(tokens(N, D)), True, id="a layer norm"),
        pytest.param(LlamaRMSNorm(D), once(tokens(N, D)), True, id="an RMS norm"),
        pytest.param(LlamaRMSNorm(D), once(tokens(N, 3, D)), True, id="heads of each token"),
        pytest.param(LlamaRMSNorm(D), once(tokens(3, N, D)), False, id="heads before tokens"),
        pytest.param(LlamaRMSNorm(D), once(tokens(N, N, D)), False, id="as many heads as tokens"),
        pytest.param(NeighbourSum(), once(tokens(N, D)), False, id="a sum of neighbours"),
    ],
)
def test_only_layers_that_take_each_token_once_and_by_itself_are_found(
    layer: nn.Module, call: Callable[[nn.Module], object], expected: bool
) -> None:
    watch = PassWatch({"layer": layer})
    with torch.no_grad(), watch.watching():
        call(layer)
    assert watch.takes_each_token("layer", N) is expected


def test_a_layer_is_left_as_it_was() -> None:
    layer = nn.Linear(D, D)
    watch = PassWatch({"layer": layer})
    with watch.watching():
        pass
    layer(tokens(N, D))
    assert not watch.rows_seen("layer", N), "nobody watched"


def test_a_layer_was_called_if_it_was_given_a_tensor_each_time() -> None:
    layers = {name: nn.Linear(D, 3) for name in ("often", "never", "by name")}
    watch = PassWatch(layers)
    with watch.watching():
        layers["often"](tokens(N, D)[0])
        layers["often"](tokens(3, N, D))
        layers["by name"](tokens(N, D))
        layers["by name"](input=tokens(N, D))
    assert [watch.was_called(name) for name in layers] == [True, False, False]
