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
        (nn.Linear(D, 3), once(tokens(N, D)), True),
        (nn.Linear(D, 3), once(tokens(N, D)[0]), False),
        (nn.Linear(D, 3), once(tokens(N - 1, D)), False),
        (nn.Linear(D, 3), lambda layer: (layer(tokens(N, D)), layer(tokens(N, D))), False),
        (nn.Linear(D, 3), lambda layer: None, False),
        (nn.Linear(D, 3), lambda layer: layer(input=tokens(N, D)), False),
        (nn.Embedding(9, D), once(torch.arange(N)[None]), True),
        (CountedPositions(9, D), once(torch.arange(N)[None]), False),
        (nn.LayerNorm(D), once(tokens(N, D)), True),
        (LlamaRMSNorm(D), once(tokens(N, D)), True),
        (LlamaRMSNorm(D), once(tokens(N, 3, D)), True),
        (LlamaRMSNorm(D), once(tokens(3, N, D)), False),
        (LlamaRMSNorm(D), once(tokens(N, N, D)), False),
        (NeighbourSum(), once(tokens(N, D)), False),
    ],
    ids=str,
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
