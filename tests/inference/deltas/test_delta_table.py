from __future__ import annotations

import random

import pytest
import torch
from fixtures.delta_factors import IN, OUT, make_factors
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.delta_table import DeltaTable


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
