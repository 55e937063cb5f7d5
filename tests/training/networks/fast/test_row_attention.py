"""Attention in blocks of queries against one attention with a mask, by torch and autograd."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from luthier.training.data.packing import RowGroup, RowLayout
from luthier.training.networks.fast.row_attention import Span, attend, attend_backward, spans_of

LAYOUTS = [
    (RowLayout(0, (RowGroup(1, 5),)),),
    (RowLayout(0, (RowGroup(2, 3), RowGroup(1, 150))),),
    (RowLayout(6, (RowGroup(2, 1), RowGroup(3, 4), RowGroup(1, 64))),),
    (RowLayout(130, (RowGroup(2, 65),)), RowLayout(4, ()), RowLayout(0, (RowGroup(2, 7),))),
]


def test_spans_are_prefixes_and_rows_in_order() -> None:
    layouts = [RowLayout(2, (RowGroup(2, 3),)), RowLayout(0, (RowGroup(1, 4),))]
    assert list(spans_of(layouts)) == [
        Span(0, 2),
        Span(2, 5, prefix=(0, 2)),
        Span(5, 8, prefix=(0, 2)),
        Span(8, 12, prefix=(8, 8)),
    ]


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("shared", [1, 3])
def test_output_and_gradients_are_those_of_one_masked_attention(
    layouts: tuple[RowLayout, ...], shared: int
) -> None:
    spans = list(spans_of(layouts))
    allowed = torch.zeros(spans[-1].stop, spans[-1].stop, dtype=torch.bool)
    for span in spans:
        own = slice(span.start, span.stop)
        allowed[own, own] = True
        allowed[own, slice(*span.prefix)] = True
    allowed = allowed.tril()
    generator = torch.Generator().manual_seed(1)
    query, key, value, direction = (
        torch.randn(1, heads, len(allowed), 8, generator=generator, dtype=torch.float64)
        for heads in (2 * shared, 2, 2, 2 * shared)
    )
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    expected = scaled_dot_product_attention(*inputs, attn_mask=allowed, scale=0.3, enable_gqa=True)
    gradients = torch.autograd.grad(expected, inputs, direction)

    ours = (_by_head(query.detach(), shared), key[0].detach(), value[0].detach())
    found = attend(*ours, spans, 0.3)
    torch.testing.assert_close(found, _by_head(expected, shared))
    found_gradients = attend_backward(_by_head(direction, shared), *ours, spans, 0.3)
    torch.testing.assert_close(found_gradients[0], _by_head(gradients[0], shared))
    torch.testing.assert_close(found_gradients[1], gradients[1][0])
    torch.testing.assert_close(found_gradients[2], gradients[2][0])


def _by_head(tensor: torch.Tensor, shared: int) -> torch.Tensor:
    """[1, K · R, N, Dh] as [K, N · R, Dh]."""
    return tensor.detach()[0].unflatten(0, (-1, shared)).transpose(1, 2).flatten(1, 2)
