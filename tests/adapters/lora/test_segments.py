"""A layer with the deltas of several adapters, against a layer of its own for each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora.segments import RandomStream, Segment, SegmentedLora, SegmentPlan
from luthier.adapters.lora_factors import LoraFactors

NUM_IN, NUM_OUT = 6, 5
CPU = torch.device("cpu")


def _factors(seed: int, *, rank: int, is_dora: bool = False) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator))

    magnitude = nn.Parameter(numbers(NUM_OUT).abs().detach()) if is_dora else None
    return LoraFactors(numbers(rank, NUM_IN), numbers(NUM_OUT, rank), 0.5 + seed, magnitude)


def _base(*, bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(NUM_IN, NUM_OUT, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_dora", [False, True])
def test_each_stretch_gets_what_its_own_layer_gives(bias: bool, is_dora: bool) -> None:
    base, plan = _base(bias=bias), SegmentPlan()
    layers = [
        LoraLinear(base, _factors(seed, rank=2 + seed, is_dora=is_dora and seed == 1))
        for seed in range(3)
    ]
    segmented = SegmentedLora(base, plan)
    segmented.deltas.update({0: layers[0], 1: layers[1], 3: layers[2]})
    bounds = [0, 2, 3, 7, 9, 10]  # of owners 0, 1, 2 (which has no delta), 3 and nobody
    plan.segments = [Segment(owner, *bounds[owner : owner + 2]) for owner in range(4)]

    x = torch.randn(1, 10, NUM_IN, requires_grad=True)
    out = segmented(x)
    wanted = torch.randn(out.shape)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad((out * wanted).sum(), [x, *learned])

    of_owner = {0: layers[0], 1: layers[1], 2: base, 3: layers[2], 4: base}
    pieces = [of_owner[owner](x[:, bounds[owner] : bounds[owner + 1]]) for owner in range(5)]
    expected_out = torch.cat(pieces, dim=1)
    expected = torch.autograd.grad((expected_out * wanted).sum(), [x, *learned])
    torch.testing.assert_close(out, expected_out)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_factors_that_are_not_learned_get_no_gradient() -> None:
    base, plan = _base(bias=False), SegmentPlan()
    layer = LoraLinear(base, _factors(1, rank=2))
    layer.lora_a.requires_grad_(False)
    segmented = SegmentedLora(base, plan)
    segmented.deltas["job"] = layer
    plan.segments = [Segment("job", 0, 3)]
    segmented(torch.randn(1, 3, NUM_IN)).sum().backward()
    assert layer.lora_a.grad is None
    assert layer.lora_b.grad is not None


def test_what_is_no_number_stays_in_its_stretch() -> None:
    base, plan = _base(bias=False), SegmentPlan()
    sick, well = (LoraLinear(base, _factors(seed, rank=2)) for seed in range(2))
    with torch.no_grad():
        sick.lora_b.fill_(float("nan"))
    segmented = SegmentedLora(base, plan)
    segmented.deltas.update(sick=sick, well=well)
    plan.segments = [Segment("sick", 0, 2), Segment("well", 2, 5)]
    x = torch.randn(1, 5, NUM_IN, requires_grad=True)
    out = segmented(x)
    out.sum().backward()
    assert out[:, :2].isnan().all()
    assert out[:, 2:].isfinite().all()
    assert x.grad is not None
    assert x.grad[:, 2:].isfinite().all()
    assert well.lora_a.grad is not None
    assert well.lora_a.grad.isfinite().all()


def test_dropout_comes_from_the_segments_own_stream() -> None:
    base, plan = _base(bias=False), SegmentPlan()
    segmented = SegmentedLora(base, plan)
    layers = [LoraLinear(base, _factors(seed, rank=2), dropout=0.5) for seed in range(2)]
    segmented.deltas.update(enumerate(layers))
    x = torch.randn(1, 7, NUM_IN)
    plan.segments = [
        Segment(0, 0, 3, RandomStream(10, CPU)),
        Segment(1, 3, 7, RandomStream(11, CPU)),
    ]
    before = torch.random.get_rng_state()
    out = torch.cat([segmented(x), segmented(x)])
    assert torch.equal(torch.random.get_rng_state(), before)
    for layer, seed, part in ((layers[0], 10, slice(0, 3)), (layers[1], 11, slice(3, 7))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = torch.cat([layer(x[:, part]), layer(x[:, part])])
        torch.testing.assert_close(out[:, part], expected)


def test_a_stream_goes_on_where_it_was_left() -> None:
    stream = RandomStream(4, CPU)
    drawn = []
    for _ in range(2):
        with stream.drawn_from():
            drawn.append(torch.rand(3))
        torch.rand(5)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(torch.cat(drawn), torch.rand(6, generator=generator))
