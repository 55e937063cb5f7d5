from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas import delta_kernel
from luthier.inference.deltas.delta_steps import AdapterSpan, choose_spans, plan_step
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.layer_changes import LayerChanges

IN, OUT = 10, 7


@pytest.fixture(params=["our kernel", "pytorch"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pytorch":
        monkeypatch.setattr(delta_kernel, "kernel", lambda name, arguments: None)


def make_factors(seed: int, dtype: torch.dtype) -> LoraFactors:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rank = rng.choice([1, 3, 8, 20])

    def draw(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator).to(dtype), requires_grad=False)

    magnitude = draw(OUT) if rng.random() < 0.4 else None
    return LoraFactors(draw(rank, IN), draw(OUT, rank), scaling=0.7, magnitude=magnitude)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("kind", ["linear", "without_bias", "conv1d"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.15)]
)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_each_token_gets_what_its_adapter_alone_gives(
    seed: int, dtype: torch.dtype, tolerance: float, kind: str
) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    layer = {
        "linear": nn.Linear(IN, OUT),
        "without_bias": nn.Linear(IN, OUT, bias=False),
        "conv1d": Conv1D(OUT, IN),
    }[kind].to(dtype)
    # The second layer is the target of some adapters only.
    layers = {"one": layer, "two": layer}
    tables = DeltaTables(layers, dtype=dtype, device=torch.device("cpu"))
    adapters = {str(index): make_factors(10 * seed + index, dtype) for index in range(6)}
    for key, factors in adapters.items():
        paths = ["one", "two"] if int(key) % 2 else ["one"]
        tables.place(key, LayerChanges(dict.fromkeys(paths, factors)))
    spans = [AdapterSpan(key, rng.randint(1, 5), rng.random() < 0.5) for key in adapters]
    spans.sort(key=lambda span: not span.is_gathered)
    num_tokens = sum(span.count for span in spans) + 2
    x = torch.randn(num_tokens, IN).to(dtype)
    plan = plan_step(tables, spans, num_tokens=num_tokens)
    assert plan.keys() == layers.keys()
    for path, step in plan.items():
        output = layer(x)
        step.add(output, x, layer.bias)
        first = 0
        for span in spans:
            own = slice(first, first + span.count)
            first += span.count
            has_delta = path == "one" or int(span.key) % 2
            tuned = LoraLinear(layer, adapters[span.key]) if has_delta else layer
            torch.testing.assert_close(output[own], tuned(x[own]), atol=tolerance, rtol=tolerance)
        assert torch.equal(output[first:], layer(x)[first:])


def test_layers_without_any_of_the_adapters_get_no_step() -> None:
    layers = {"one": nn.Linear(IN, OUT), "two": nn.Linear(IN, OUT)}
    tables = DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"))
    tables.place("a", LayerChanges({"one": make_factors(0, torch.float32)}))
    tables.place("b", LayerChanges({"two": make_factors(1, torch.float32)}))
    spans = [AdapterSpan("a", 1, is_gathered=False)]
    assert plan_step(tables, spans, num_tokens=3).keys() == {"one"}


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("is_gathered", [True, False])
@torch.no_grad()
def test_numbers_that_are_not_finite_stay_with_their_own_token(is_gathered: bool) -> None:
    layer = nn.Linear(IN, OUT)
    tables = DeltaTables({"one": layer}, dtype=torch.float32, device=torch.device("cpu"))
    tables.place("good", LayerChanges({"one": make_factors(0, torch.float32)}))
    tables.place("bad", LayerChanges({"one": make_factors(1, torch.float32)}))
    tables.by_path["one"].content.b[tables.by_path["one"].content.rows["bad"].start] = torch.nan
    x = torch.randn(3, IN)
    output = layer(x)
    spans = [AdapterSpan(key, 1, is_gathered) for key in ("bad", "good")]
    plan_step(tables, spans, num_tokens=3)["one"].add(output, x, layer.bias)
    assert output[0].isnan().all()
    assert output[1:].isfinite().all()


@pytest.mark.usefixtures("_both_ways")
@torch.no_grad()
def test_numbers_that_were_not_finite_are_gone_in_the_next_pass_of_the_same_plan() -> None:
    layer = nn.Linear(IN, OUT)
    tables = DeltaTables({"one": layer}, dtype=torch.float32, device=torch.device("cpu"))
    for key in "ab":
        tables.place(key, LayerChanges({"one": make_factors(ord(key), torch.float32)}))
    spans = [AdapterSpan(key, 1, is_gathered=True) for key in "ab"]
    step = plan_step(tables, spans, num_tokens=2)["one"]
    x = torch.randn(2, IN)
    expected = layer(x)
    step.add(expected, x, layer.bias)
    broken = layer(x)
    step.add(broken, torch.full_like(x, torch.nan), layer.bias)
    assert broken.isnan().all()
    output = layer(x)
    step.add(output, x, layer.bias)
    assert torch.equal(output, expected)


def test_only_many_adapters_with_little_each_are_gathered() -> None:
    tables = DeltaTables(
        {"one": nn.Linear(IN, OUT)}, dtype=torch.float32, device=torch.device("cpu")
    )
    for key in "abcdefghijklmn":
        factors = LoraFactors(
            nn.Parameter(torch.randn(4, IN)), nn.Parameter(torch.randn(OUT, 4)), scaling=1.0
        )
        tables.place(key, LayerChanges({"one": factors}))
    large = LoraFactors(
        nn.Parameter(torch.randn(64, IN)), nn.Parameter(torch.randn(OUT, 64)), scaling=1.0
    )
    tables.remove("c")
    tables.place("c", LayerChanges({"one": large}))
    little = dict.fromkeys("nmlkjihgfedc", 1)  # whatever its rank, one token is little
    assert choose_spans({"a": 40, "b": 5, **little}, tables) == [
        *(AdapterSpan(key, 1, True) for key in "cdefghijklmn"),
        AdapterSpan("a", 40, False),
        AdapterSpan("b", 5, False),
    ]
    assert not any(span.is_gathered for span in choose_spans({"a": 1, "b": 1}, tables))
