from __future__ import annotations

import torch
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.layer_changes import LayerChanges
from luthier.inference.deltas.pool.host_deltas import HostDeltas

#: Bytes of what ``make_deltas`` makes: A and B of rank 1 for four inputs and outputs, in fp32.
SIZE = 2 * 4 * 4


def make_deltas(number: float, *, rank: int = 1) -> LayerChanges:
    lora_a, lora_b = torch.ones(rank, 4) * number, torch.ones(4, rank) * number
    factors = LoraFactors(nn.Parameter(lora_a), nn.Parameter(lora_b), scaling=1.0)
    return LayerChanges({"layer": factors})


def test_the_least_recently_used_is_dropped_when_the_bytes_are_used_up() -> None:
    kept = HostDeltas(2 * SIZE)
    kept.put("a", make_deltas(1))
    kept.put("b", make_deltas(2))
    assert kept.get("a") is not None
    kept.put("c", make_deltas(3))
    assert [key for key in "abc" if kept.get(key) is not None] == ["a", "c"]
    assert (len(kept), kept.num_bytes) == (2, 2 * SIZE)


def test_what_is_kept_is_what_was_put() -> None:
    kept = HostDeltas(10 * SIZE)
    factors = LoraFactors(
        **{**vars(make_deltas(5).deltas["layer"]), "magnitude": nn.Parameter(torch.ones(4))},
    )
    kept.put("a", LayerChanges({"layer": factors}))
    found = kept.get("a")
    assert found is not None
    assert torch.equal(found.deltas["layer"].lora_a, factors.lora_a)
    assert found.deltas["layer"].magnitude is not None
    assert kept.num_bytes == SIZE + 4 * 4


def test_layers_of_an_adapters_own_are_kept_as_they_were_and_shared_tensors_once() -> None:
    kept = HostDeltas(10 * SIZE)
    embeddings, head = nn.Embedding(3, 4), nn.Linear(4, 3, bias=False)
    head.weight = embeddings.weight
    before = head.weight.detach().clone()
    kept.put("a", LayerChanges({}, {"in": embeddings, "out": head}))
    with torch.no_grad():
        head.weight.zero_()
    found = kept.get("a")
    assert found is not None
    assert torch.equal(found.modules["out"].weight, before)
    assert found.modules["in"].weight is found.modules["out"].weight
    assert kept.num_bytes == 3 * 4 * 4


def test_one_that_never_fits_drops_nobody() -> None:
    kept = HostDeltas(2 * SIZE)
    kept.put("a", make_deltas(1))
    kept.put("large", make_deltas(2, rank=3))
    assert kept.get("a") is not None
    assert kept.get("large") is None


def test_zero_bytes_keep_nothing() -> None:
    kept = HostDeltas(0)
    kept.put("a", make_deltas(1))
    assert len(kept) == 0
