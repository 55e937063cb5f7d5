from __future__ import annotations

import pytest
import torch
from fixtures.delta_factors import IN, OUT, make_factors
from torch import nn

from luthier.adapters.lora.layers import LoraLinear
from luthier.inference.deltas import own_delta
from luthier.inference.deltas.own_delta import OwnDelta


@pytest.fixture(params=["kernel", "pytorch"], autouse=True)
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pytorch":
        monkeypatch.setattr(own_delta, "delta_kernel", lambda dtype, device: None)


def make_pair(*, has_magnitude: bool, has_bias: bool = True) -> tuple[OwnDelta, LoraLinear]:
    torch.manual_seed(3)
    base = nn.Linear(IN, OUT, bias=has_bias).requires_grad_(False)
    factors = make_factors(1, 3, has_magnitude=has_magnitude)
    own = OwnDelta(base, factors, dtype=torch.float32, device=torch.device("cpu"))
    return own, LoraLinear(base, factors)


@pytest.mark.parametrize("has_magnitude", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(IN,), (0, IN), (1, 7, IN), (2, 3, IN)])
def test_it_gives_what_the_layer_that_training_uses_gives(
    has_magnitude: bool, has_bias: bool, shape: tuple[int, ...]
) -> None:
    own, expected = make_pair(has_magnitude=has_magnitude, has_bias=has_bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(own(x), expected(x), rtol=1e-5, atol=1e-6)


def test_the_base_layer_and_the_factors_stay_as_they_are() -> None:
    own, lora = make_pair(has_magnitude=True)
    assert list(own.parameters()) == []
    before = lora.base.weight.clone()
    with torch.inference_mode():
        own(torch.randn(4, IN))
        first = own(torch.ones(1, IN))
        lora.lora_a.mul_(2)
        assert torch.equal(own(torch.ones(1, IN)), first)
    assert torch.equal(lora.base.weight, before)
