from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.delta_tables import DeltaTable, DeltaTables
from luthier.inference.deltas.layer_changes import LayerChanges

IN, OUT = 6, 4


def make_factors(seed: int, rank: int, *, has_magnitude: bool = False) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    lora_a = nn.Parameter(torch.randn(rank, IN, generator=generator))
    lora_b = nn.Parameter(torch.randn(OUT, rank, generator=generator))
    magnitude = nn.Parameter(torch.rand(OUT, generator=generator)) if has_magnitude else None
    return LoraFactors(lora_a, lora_b, scaling=0.5, magnitude=magnitude)


def make_table() -> DeltaTable:
    return DeltaTable(nn.Linear(IN, OUT), dtype=torch.float32, device=torch.device("cpu"))


def assert_stored(table: DeltaTable, key: str, factors: LoraFactors) -> None:
    content = table.content
    rows = content.rows[key]
    span = slice(rows.start, rows.start + rows.rank)
    assert torch.equal(content.a[span], factors.lora_a)
    assert torch.equal(content.b[span], factors.lora_b.T * 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adapters_that_come_and_go_keep_their_numbers_and_never_overlap(seed: int) -> None:
    rng = random.Random(seed)
    table = make_table()
    stored: dict[str, LoraFactors] = {}
    for index in range(60):
        if stored and rng.random() < 0.45:
            key = rng.choice(sorted(stored))
            del stored[key]
            table.remove(key)
        else:
            stored[str(index)] = make_factors(index, rng.randint(1, 9))
            table.place(str(index), stored[str(index)])
        assert table.content.rows.keys() == stored.keys()
        taken = [
            row for rows in table.content.rows.values() for row in range(rows.start, rows.stop)
        ]
        assert len(taken) == len(set(taken))
        assert max(taken, default=-1) < len(table.content.a)
        for key, factors in stored.items():
            assert_stored(table, key, factors)


def test_a_table_moves_seldom_while_it_grows() -> None:
    table = make_table()
    moves = [table.place(str(index), make_factors(index, 64)) for index in range(100)]
    assert sum(moves) <= 4
    assert 6400 <= len(table.content.a) <= 2 * 6400


def test_the_lowest_free_rows_are_taken_so_that_little_memory_is_touched() -> None:
    table = make_table()
    for index in range(40):
        table.place(str(index), make_factors(index, 8))
        table.remove(str(index - 3))
    assert all(rows.stop <= 4 * 8 for rows in table.content.rows.values())


def test_who_holds_the_old_memory_can_still_read_it_after_a_move() -> None:
    table = make_table()
    factors = make_factors(0, 4)
    table.place("first", factors)
    before, rows = table.content, table.content.rows["first"]
    assert table.place("second", make_factors(1, 2000))
    assert table.content is not before
    assert torch.equal(before.a[rows.start : rows.start + 4], factors.lora_a)


def test_the_scale_of_dora_is_the_magnitude_over_the_length_of_the_tuned_weight() -> None:
    layer = nn.Linear(IN, OUT)
    table = DeltaTable(layer, dtype=torch.float32, device=torch.device("cpu"))
    factors = make_factors(3, 2, has_magnitude=True)
    table.place("dora", factors)
    rows = table.content.rows["dora"]
    assert rows.has_scale
    tuned = layer.weight + 0.5 * factors.lora_b @ factors.lora_a
    assert factors.magnitude is not None
    expected = factors.magnitude / tuned.norm(dim=1)
    torch.testing.assert_close(table.content.b[rows.stop - 1], expected.detach())


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
