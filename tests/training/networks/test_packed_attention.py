"""Attention row by row against one attention with a mask over the whole sequence."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from luthier.errors import NotSupportedError
from luthier.training.data.packing import RowGroup, RowLayout
from luthier.training.networks.packed_attention import longest_exact_row, packed_attention

H, K, DH = 4, 2, 8
LAYOUTS = [
    RowLayout(0, (RowGroup(1, 5),)),
    RowLayout(0, (RowGroup(2, 3), RowGroup(1, 4))),
    RowLayout(6, (RowGroup(2, 1), RowGroup(3, 4), RowGroup(1, 9))),
    RowLayout(4, ()),
]


def _allowed(layout: RowLayout) -> torch.Tensor:
    """Who sees whom, by brute force, [N, N]."""
    rows = [0] * layout.prefix_length
    for group in layout.groups:
        for _ in range(group.num_rows):
            rows += [max(rows, default=0) + 1] * group.length
    return torch.tensor(
        [
            [column <= row and rows[column] in (0, rows[row]) for column in range(len(rows))]
            for row in range(len(rows))
        ]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_sees_the_prefix_and_itself(layout: RowLayout) -> None:
    allowed = _allowed(layout)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, len(allowed), DH, generator=generator, dtype=torch.float64)
        for heads in (H, K, K)
    ]
    for tensor in tensors:
        tensor.requires_grad_(True)
    found, weights = packed_attention(object(), *tensors, None, row_layouts=[layout], scaling=0.3)
    expected = scaled_dot_product_attention(
        *tensors, attn_mask=allowed, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, direction),
        torch.autograd.grad(expected, tensors, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_feature_that_would_change_the_scores_is_refused() -> None:
    tensors = [torch.zeros(1, heads, 5, DH) for heads in (H, K, K)]
    packed_attention(object(), *tensors, None, row_layouts=[LAYOUTS[0]], softcap=None)
    with pytest.raises(NotSupportedError, match="'softcap'"):
        packed_attention(object(), *tensors, None, row_layouts=[LAYOUTS[0]], softcap=3.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 64, "attention_chunk_size": 32}, 32),
    ],
)
def test_windows_and_chunks_limit_a_packed_row(
    settings: dict[str, int | None], expected: int | None
) -> None:
    text_config = SimpleNamespace(**settings)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text_config))
    assert longest_exact_row(model) == expected  # type: ignore[arg-type]
