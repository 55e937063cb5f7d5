from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.delta_factors import IN, OUT, make_factors
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.layer_changes import LayerChanges


def test_the_bytes_of_an_adapter_are_those_of_its_tensors() -> None:
    layers = {"one": nn.Linear(IN, OUT), "two": nn.Linear(IN, OUT)}
    tables = DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"))
    factors = {"one": make_factors(0, 3), "two": make_factors(1, 5)}
    tensors = [t for each in factors.values() for t in (each.lora_a, each.lora_b)]
    assert tables.num_bytes(LayerChanges(factors)) == sum(tensor.nbytes for tensor in tensors)


def test_an_adapter_that_cannot_be_stored_leaves_nothing_behind() -> None:
    layers = {"one": nn.Linear(IN, OUT), "two": nn.Linear(IN + 1, OUT)}
    tables = DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(RuntimeError):
        broken = LayerChanges({"one": make_factors(0, 3), "two": make_factors(1, 5)})
        tables.place("broken", broken)
    assert not tables.has("broken")
    assert not any(table.content.rows for table in tables.by_path.values())


def make_narrow_tables() -> DeltaTables:
    layers = {"one": nn.Linear(IN, OUT), "two": nn.Linear(IN, OUT)}
    narrow = (torch.bfloat16, torch.float16)
    return DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"), narrow=narrow)


def rounded(factors: LoraFactors, dtype: torch.dtype) -> LoraFactors:
    return factors.moved(lambda tensor: tensor.detach().to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_factors_are_held_in_the_fewest_bits_that_lose_nothing(dtype: torch.dtype) -> None:
    tables = make_narrow_tables()
    factors = rounded(make_factors(0, 3), dtype)
    changes = LayerChanges({"one": factors})
    tables.place("a", changes)
    product = tables.products("a")["one"]
    assert product.b.dtype == product.a_transposed.dtype == dtype
    assert torch.equal(product.a_transposed.T.float(), factors.lora_a)
    assert torch.equal(product.b.T.float(), factors.lora_b * factors.scaling)
    assert tables.num_bytes(changes) == 3 * (IN + OUT) * dtype.itemsize
    assert tables.max_rank("a") == 3
    tables.remove("a")
    assert not tables.products("a")
    assert not any(table.content.rows for _, table in tables.of_all_precisions())


def test_factors_that_would_lose_something_in_16_bits_are_not_held_in_them() -> None:
    tables = make_narrow_tables()
    exact = rounded(make_factors(0, 3), torch.bfloat16)
    lengths = rounded(make_factors(0, 3, has_magnitude=True), torch.bfloat16)
    start = torch.zeros(3, IN)
    others = {
        "scaled": replace(exact, scaling=1 / 3),
        "dora": lengths,
        "started": replace(exact, start_a=start, start_b=start[:, :OUT].T),
        "one number": replace(exact, lora_a=nn.Parameter(exact.lora_a.detach().clone())),
    }
    others["one number"].lora_a.data[-1, -1] += 2**-20
    for key, factors in others.items():
        tables.place(key, LayerChanges({"one": factors}))
        assert tables.products(key)["one"].b.dtype == torch.float32, key


def test_a_product_with_factors_of_16_bits_is_that_of_the_same_numbers() -> None:
    tables = make_narrow_tables()
    factors = rounded(make_factors(0, 3), torch.float16)
    tables.place("a", LayerChanges({"one": factors}))
    x, output = torch.randn(5, IN), torch.randn(5, OUT)
    expected = output + x @ factors.lora_a.T @ factors.lora_b.T * factors.scaling
    tables.products("a")["one"].add(output, x, None)
    torch.testing.assert_close(output, expected.detach())


def test_only_known_layers_are_taken() -> None:
    tables = DeltaTables(
        {"one": nn.Linear(IN, OUT)}, dtype=torch.float32, device=torch.device("cpu")
    )
    assert tables.takes(frozenset({"one"}))
    assert not tables.takes(frozenset({"one", "lm_head"}))
