"""Starts against PEFT's own, tensor by tensor, and against their definitions."""

from __future__ import annotations

import pytest
import torch
from fixtures.lora_models import make_llama, peft_parameters, with_peft
from torch import nn

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.initialisation import StartingFactors, starting_factors
from luthier.adapters.lora.targets import LoraTarget
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, NotSupportedError

WORDS = {
    "default": True,
    "random": False,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
    "olora": "olora",
    "mica": "mica",
}


def _start(initialisation: str, *, rank: int = 3, scaling: float = 2.0) -> StartingFactors:
    torch.manual_seed(1)
    target = LoraTarget("a.b", 8, 6, rank, 1.0, is_transposed=False)
    return starting_factors(
        nn.Linear(8, 6),
        target,
        scaling=scaling,
        initialisation=initialisation,
        generator=torch.Generator().manual_seed(2),
    )


@pytest.mark.parametrize("word", WORDS)
def test_the_start_is_that_of_peft_for_the_same_seed(word: str) -> None:
    has_dora = word != "mica"  # PEFT does not have both
    expected = with_peft(
        make_llama(), seed=9, r=4, use_dora=has_dora, init_lora_weights=WORDS[word]
    )
    config = LoraConfig(rank=4, alpha=8, use_dora=has_dora, initialisation=word)
    adapter = create_lora(make_llama(), config, seed=9)
    theirs = peft_parameters(expected)
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], atol=1e-6, rtol=1e-5)
    assert {name for name, _ in adapter.named_parameters()} == theirs.keys()


def test_pissa_begins_with_the_principal_part_of_the_weight() -> None:
    torch.manual_seed(1)
    weight = nn.Linear(8, 6).weight.detach()
    u, s, vh = torch.linalg.svd(weight)
    best = u[:, :3] * s[:3] @ vh[:3]
    for word in ("pissa", "pissa_niter_30"):
        start = _start(word)
        assert start.is_subtracted
        torch.testing.assert_close(2.0 * start.lora_b @ start.lora_a, best, atol=1e-4, rtol=1e-4)


def test_olora_begins_with_orthonormal_columns_of_b() -> None:
    start = _start("olora")
    assert start.is_subtracted
    torch.testing.assert_close(start.lora_b.T @ start.lora_b, torch.eye(3), atol=1e-5, rtol=0)


def test_mica_learns_a_alone() -> None:
    start = _start("mica")
    assert not start.trains_b
    assert not start.lora_a.any()
    adapter = create_lora(make_llama(), LoraConfig(rank=2, initialisation="mica"), seed=1)
    assert all(name.endswith("lora_A.weight") for name, _ in adapter.named_parameters())


def test_a_rank_that_the_start_cannot_have_is_refused() -> None:
    for word in ("pissa", "olora", "mica"):
        with pytest.raises(InvalidInputError, match=r"rank 7 exceeds.*'a.b'.*at most 6"):
            _start(word, rank=7)
    with pytest.raises(InvalidInputError, match="needs an even rank, got 3"):
        _start("orthogonal", rank=3)
    assert _start("default", rank=7).lora_a.shape == (7, 8)


def test_a_quantised_weight_is_refused_by_starts_that_read_it() -> None:
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(torch.ones(24, 1, dtype=torch.uint8), requires_grad=False)
    target = LoraTarget("a.b", 8, 6, 2, 1.0, is_transposed=False)
    for word in ("pissa", "olora", "mica"):
        with pytest.raises(NotSupportedError, match="quantised"):
            starting_factors(
                layer, target, scaling=1.0, initialisation=word, generator=torch.Generator()
            )
