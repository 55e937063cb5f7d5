from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from luthier.inference.memory.kv_cache import KvArena, KvShape
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedBatch, PackedRow, ShapeProbe
from luthier.inference.runners.told_attention import told_attention


@pytest.mark.parametrize(("key_dim", "value_dim"), [(12, 8), (8, 12), (8, 8)])
def test_keys_and_values_of_two_widths_share_an_arena(key_dim: int, value_dim: int) -> None:
    layer: Any = nn.Identity()
    layer.layer_idx = 0
    step: CurrentStep[Any] = CurrentStep(layer)
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 4, 5, key_dim, generator=generator).unbind(0)
    value = torch.randn(1, 4, 5, value_dim, generator=generator)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    probe = ShapeProbe()
    step.set(probe)
    got, _ = told_attention(layer, query, key, value, None)
    torch.testing.assert_close(got, expected)
    ((num_heads, width, also),) = probe.by_layer.values()
    assert width == also == max(key_dim, value_dim)
    arena = KvArena(
        KvShape(1, num_heads, width), 16, dtype=torch.float32, device=torch.device("cpu")
    )
    for start, stop in ((0, 3), (3, 4), (4, 5)):  # the rest of the row comes token by token
        row = PackedRow(0, stop - start, 8, 8 + stop, None)
        step.set(PackedBatch(arena, torch.arange(8 + start, 8 + stop), (row,)))
        part = slice(start, stop)
        got, _ = told_attention(layer, query[:, :, part], key[:, :, part], value[:, :, part], None)
        torch.testing.assert_close(got, expected[:, part])
