"""NEFTune's noise: as strong as the formula says, repeatable, and off outside a batch."""

import math

import pytest
import torch
from torch import nn

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.training.networks.embedding_noise import EmbeddingNoise, embedding_noise_of

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0]])


def _layer(noise: EmbeddingNoise, *, hidden_size: int = 64) -> nn.Embedding:
    layer = nn.Embedding(10, hidden_size)
    noise.listen_to(layer)
    return layer


def _noise_of(layer: nn.Embedding, noise: EmbeddingNoise, *, batch: int = 1) -> torch.Tensor:
    ids = torch.arange(8).repeat(2, 1)
    with torch.no_grad(), noise.applied(MASK, batch=batch):
        return layer(ids) - layer.weight[ids]


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_noise_is_uniform_up_to_alpha_by_the_root_of_tokens_times_width(alpha: float) -> None:
    noise = EmbeddingNoise(alpha, seed=1)
    drawn = _noise_of(_layer(noise, hidden_size=4096), noise)
    for row, num_tokens in ((0, 8), (1, 2)):
        bound = alpha / math.sqrt(num_tokens * 4096)
        values = drawn[row, :num_tokens]
        assert values.abs().max() <= bound * 1.001
        assert values.abs().max() > bound * 0.99
        assert values.mean().abs() < bound * 0.05
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_padding_gets_none() -> None:
    noise = EmbeddingNoise(5.0, seed=1)
    assert _noise_of(_layer(noise), noise)[1, 2:].abs().max() == 0


def test_seed_and_batch_decide_and_nobody_elses_generator_moves() -> None:
    noise = EmbeddingNoise(5.0, seed=1)
    layer = _layer(noise)
    before = torch.random.get_rng_state()
    first = _noise_of(layer, noise, batch=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(_noise_of(layer, noise, batch=1), first)
    assert not torch.equal(_noise_of(layer, noise, batch=2), first)
    other = EmbeddingNoise(5.0, seed=2)
    assert not torch.equal(_noise_of(_layer(other), other, batch=1), first)


def test_outside_a_batch_there_is_none() -> None:
    noise = EmbeddingNoise(5.0, seed=1)
    layer = _layer(noise)
    _noise_of(layer, noise)
    ids = torch.arange(8)[None]
    assert torch.equal(layer(ids), layer.weight[ids])


def test_gradients_pass_through_and_the_number_format_stays() -> None:
    noise = EmbeddingNoise(5.0, seed=1)
    layer = _layer(noise).to(torch.bfloat16)
    with noise.applied(MASK, batch=1):
        out = layer(torch.arange(8).repeat(2, 1))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad is not None


def test_there_is_noise_only_where_options_ask_for_it() -> None:
    assert embedding_noise_of(None, seed=1) is None
    assert embedding_noise_of(DatasetOptions(), seed=1) is None
    assert embedding_noise_of(DatasetOptions(neftune_noise_alpha=5.0), seed=1) is not None
