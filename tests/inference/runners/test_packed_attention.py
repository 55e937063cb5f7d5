from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from luthier.errors import NotSupportedError
from luthier.inference.memory.kv_cache import KvArena, KvShape
from luthier.inference.runners.packed_attention import PackedBatch, PackedRow, packed_attention

HEADS, KV_HEADS, DIM = 6, 2, 4
LAYER = SimpleNamespace(layer_idx=1)


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """One row with its whole past: [H, n, Dh] queries at the end of [K, t, Dh] keys."""
    count, total = query.shape[1], keys.shape[1]
    mask = torch.ones(count, total, dtype=torch.bool).tril(diagonal=total - count)
    if window is not None:
        mask = mask.triu(diagonal=total - count - window + 1)
    group = HEADS // KV_HEADS
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 3, 8])
@pytest.mark.usefixtures("either_way")
def test_rows_of_all_sorts_attend_to_their_own_past_only(window: int | None) -> None:
    torch.manual_seed(1)
    shape = KvShape(2, KV_HEADS, DIM)
    arena = KvArena(shape, 64, dtype=torch.float32, device=torch.device("cpu"))
    past, spans = {}, [(0, 5, 1), (16, 0, 7), (32, 9, 4), (48, 0, 1)]  # start, past, new
    for start, num_past, _ in spans:
        keys, values = torch.randn(2, KV_HEADS, num_past, DIM).unbind(0)
        arena.write(1, torch.arange(start, start + num_past), keys, values)
        past[start] = (keys, values)
    num_new = sum(new for _, _, new in spans)
    query = torch.randn(1, HEADS, num_new, DIM)
    key, value = torch.randn(2, 1, KV_HEADS, num_new, DIM).unbind(0)
    rows, slots, expected, first = [], [], [], 0
    for start, num_past, new in spans:
        total = num_past + new
        mask = torch.ones(new, total, dtype=torch.bool).tril(diagonal=num_past)
        rows.append(
            PackedRow(first, new, start, start + total, mask if new > 1 and num_past else None)
        )
        slots += range(start + num_past, start + total)
        part = slice(first, first + new)
        keys = torch.cat([past[start][0], key[0, :, part]], 1)
        values = torch.cat([past[start][1], value[0, :, part]], 1)
        expected.append(reference(query[0, :, part], keys, values, window))
        first += new
    batch = PackedBatch(arena, torch.tensor(slots), tuple(rows))
    got, _ = packed_attention(
        LAYER, query, key, value, None, packed_batch=batch, sliding_window=window
    )
    torch.testing.assert_close(got[0], torch.cat(expected))


@pytest.mark.parametrize("feature", ["position_bias", "indexer"])
def test_a_feature_that_would_matter_is_refused(feature: str) -> None:
    empty = torch.zeros(1, 2, 1, 4)
    batch = PackedBatch(None, torch.zeros(0), ())  # type: ignore[arg-type]
    with pytest.raises(NotSupportedError, match=feature):
        packed_attention(
            LAYER, empty, empty, empty, None, packed_batch=batch, **{feature: torch.tensor(3.0)}
        )
