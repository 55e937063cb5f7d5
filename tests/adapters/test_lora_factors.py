"""A delta's factors against the delta that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.adapters.lora_factors import LoraFactors


def _factors(*, has_start: bool) -> LoraFactors:
    torch.manual_seed(5)
    return LoraFactors(
        lora_a=nn.Parameter(torch.randn(2, 5)),
        lora_b=nn.Parameter(torch.randn(4, 2)),
        scaling=0.5,
        start_a=torch.randn(2, 5) if has_start else None,
        start_b=torch.randn(4, 2) if has_start else None,
    )


@pytest.mark.parametrize("has_start", [False, True])
def test_stacked_factors_make_the_whole_delta(has_start: bool) -> None:
    factors = _factors(has_start=has_start)
    delta = factors.lora_b @ factors.lora_a
    if factors.start_a is not None and factors.start_b is not None:
        delta = delta - factors.start_b @ factors.start_a
    lora_a, lora_b = factors.stacked()
    assert lora_a.shape[0] == lora_b.shape[1] == (4 if has_start else 2)
    torch.testing.assert_close(lora_b @ lora_a, delta)


def test_moved_factors_have_tensors_of_their_own_and_the_same_settings() -> None:
    factors = _factors(has_start=True)
    moved = factors.moved(lambda tensor: tensor.detach().double())
    assert isinstance(moved.lora_a, nn.Parameter)
    assert moved.start_a is not None
    assert moved.start_a.dtype == moved.lora_b.dtype == torch.float64
    assert (moved.scaling, moved.trains_b, moved.magnitude) == (0.5, True, None)
    with torch.no_grad():
        moved.lora_a.zero_()
    assert factors.lora_a.count_nonzero() == 10
