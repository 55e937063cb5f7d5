"""Factors beside a layer against the definitions."""

from __future__ import annotations

import torch
from fixtures.lora_models import make_llama
from torch import nn

from luthier.adapters.lora.fresh_factors import factor_dtype, fresh_factors
from luthier.adapters.lora.initialisation import StartingFactors


def _start(*, is_subtracted: bool) -> StartingFactors:
    torch.manual_seed(3)
    return StartingFactors(torch.randn(2, 5), torch.randn(4, 2), is_subtracted=is_subtracted)


def test_a_subtracted_start_is_kept_apart_from_what_is_learned() -> None:
    start = _start(is_subtracted=True)
    factors = fresh_factors(
        start, nn.Linear(5, 4), scaling=2.0, use_dora=False, dtype=torch.float32
    )
    a, b = factors.stacked()
    torch.testing.assert_close(b @ a, torch.zeros(4, 5), atol=1e-6, rtol=0)
    with torch.no_grad():
        factors.lora_a.add_(1)
    assert torch.equal(factors.start_a, _start(is_subtracted=True).lora_a)
    assert factors.magnitude is None


def test_doras_lengths_are_those_of_weight_and_delta() -> None:
    layer, start = nn.Linear(5, 4), _start(is_subtracted=False)
    factors = fresh_factors(start, layer, scaling=0.5, use_dora=True, dtype=torch.float64)
    whole = layer.weight.double() + 0.5 * start.lora_b.double() @ start.lora_a.double()
    torch.testing.assert_close(factors.magnitude, whole.norm(dim=1), check_dtype=True)


def test_factors_beside_half_precision_are_fp32() -> None:
    assert factor_dtype(make_llama().to(torch.bfloat16)) == torch.float32
    assert factor_dtype(make_llama().double()) == torch.float64
