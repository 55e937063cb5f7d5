from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from luthier.inference.deltas.whole_modules import OwnSpan, SpanLayer, WholeModules, WholeStep

CPU = torch.device("cpu")


class Counting(nn.Linear):
    """A linear layer that remembers how many tokens it was given."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.counts: list[int] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.counts.append(input.shape[1])
        return super().forward(input)


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_each_token_goes_through_its_own_layer_and_the_bases_runs_once(seed: int) -> None:
    rng = random.Random(seed)
    base, owners = Counting(5, 3), [nn.Linear(5, 3) for _ in range(3)]
    # Sorted, as an engine's pass is; some parts belong to the base.
    parts = [(rng.choice([base, *owners]), rng.randint(1, 4)) for _ in range(rng.randint(1, 6))]
    spans, layers, start = [], [], 0
    for layer, count in parts:
        if layer is not base:
            spans.append(OwnSpan(start, start + count, layer))
        layers += [layer] * count
        start += count
    if not spans:
        spans = [OwnSpan(0, 1, owners[0])]
        layers[0] = owners[0]
    x = torch.randn(1, start, 5)
    got = WholeStep(spans, start).run(base, x)
    others = [index for index, layer in enumerate(layers) if layer is base]
    assert base.counts == ([others[-1] + 1 - others[0]] if others else [])
    one_by_one = [layer(x[:, i : i + 1]) for i, layer in enumerate(layers)]
    torch.testing.assert_close(got, torch.cat(one_by_one, dim=1))


@torch.no_grad()
def test_what_is_not_finite_stays_with_its_own_tokens() -> None:
    base, broken = nn.Linear(4, 4), nn.Linear(4, 4)
    broken.weight.fill_(torch.nan)
    x = torch.randn(1, 5, 4)
    got = WholeStep([OwnSpan(1, 3, broken)], 5).run(base, x)
    assert got[0, 1:3].isnan().all()
    torch.testing.assert_close(got[0, [0, 3, 4]], base(x)[0, [0, 3, 4]])


@torch.no_grad()
def test_numbers_of_tokens_and_their_embeddings_are_looked_up_by_owner() -> None:
    base, own = nn.Embedding(9, 4), nn.Embedding(9, 4)
    ids = torch.tensor([[3, 4, 3, 4]])
    got = WholeStep([OwnSpan(0, 2, own)], 4).run(base, ids)
    assert torch.equal(got[0], torch.stack([*own.weight[[3, 4]], *base.weight[[3, 4]]]))


def test_what_is_stored_is_a_copy_in_the_models_precision_that_shares_what_was_shared() -> None:
    embeddings, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = embeddings.weight
    layers = {"in": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False), "more": nn.Identity()}
    stored = WholeModules(layers, dtype=torch.bfloat16, device=CPU)
    assert stored.takes(frozenset({"in", "out"}))
    assert not stored.takes(frozenset({"in", "elsewhere"}))
    own = {"in": embeddings, "out": head}
    assert stored.num_bytes(own) == 6 * 4 * 2, "one tensor, two bytes a number"
    assert stored.base_bytes(frozenset({"in", "out"})) == 2 * 6 * 4 * 2
    before = embeddings.weight.detach().clone()
    stored.place("key", own)
    with torch.no_grad():
        embeddings.weight.zero_()
    copies = stored.of("key")
    assert copies["in"].weight is copies["out"].weight
    assert torch.equal(copies["in"].weight, before.to(torch.bfloat16))  # type: ignore[arg-type]
    assert not any(each.requires_grad for each in copies["in"].parameters())
    assert (stored.has("key"), stored.has("other")) == (True, False)
    stored.remove("key")
    stored.remove("key")
    assert not stored.of("key")


def test_a_large_layer_of_an_adapters_own_gives_what_it_gave() -> None:
    large = nn.Linear(1024, 1024)
    stored = WholeModules({"layer": large}, dtype=torch.float32, device=CPU)
    stored.place("key", {"layer": large})
    x = torch.randn(1, 8, 1024)
    with torch.no_grad():
        torch.testing.assert_close(stored.of("key")["layer"](x), large(x))


def test_a_place_is_taken_for_the_length_of_a_pass() -> None:
    parent = nn.Sequential(nn.Linear(3, 3))
    base, own = parent[0], nn.Linear(3, 3)
    layer = SpanLayer(parent, "0")
    x = torch.randn(1, 2, 3)
    layer.enter(WholeStep([OwnSpan(0, 2, own)], 2))
    assert torch.equal(parent(x), own(x))
    assert parent[0].weight is base.weight
    assert parent[0].in_features == 3
    with pytest.raises(AttributeError, match="nothing"):
        _ = parent[0].nothing
    layer.leave()
    assert parent[0] is base
