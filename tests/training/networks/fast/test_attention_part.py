"""The attention part as one function against its pieces and autograd."""

import pytest
import torch
from fixtures.frozen_products import factors_of, make_products, plain_product

from luthier.training.data.packing import RowGroup, RowLayout
from luthier.training.networks.fast.attention_part import AttentionProducts, normed_attention
from luthier.training.networks.fast.rms_norm import rms_norm
from luthier.training.networks.fast.rotary_attention import rotary_attention

DTYPE = torch.float64
SIZE, HEAD, NUM_TOKENS = 12, 4, 9
LAYOUTS = (RowLayout(2, (RowGroup(1, 3), RowGroup(1, 4))),)
WIDTHS = {"query": (16, SIZE), "key": (8, SIZE), "value": (8, SIZE), "output": (SIZE, 16)}


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


@pytest.mark.parametrize(
    ("with_delta", "wants_x"),
    [
        ((), True),
        (("query", "value"), True),
        (("query", "value"), False),
        (("query", "key", "value", "output"), True),
    ],
)
def test_value_and_gradients_are_those_of_the_pieces(
    with_delta: tuple[str, ...], wants_x: bool
) -> None:
    products = AttentionProducts(**make_products(WIDTHS, with_delta=with_delta))
    x = _random(1, NUM_TOKENS, SIZE, seed=1).requires_grad_(wants_x)
    norm_weight = _random(SIZE, seed=2)
    angles = _random(NUM_TOKENS, HEAD // 2, seed=3).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    direction = _random(1, NUM_TOKENS, SIZE, seed=4)

    normed = rms_norm(x, norm_weight, 1e-3)[0]
    query, key, value = (
        plain_product(product, normed).view(NUM_TOKENS, -1, HEAD) for product in products[:3]
    )
    attended = rotary_attention(query, key, value, cos, sin, row_layouts=LAYOUTS, scaling=0.3)
    expected = x + plain_product(products.output, attended)
    found = normed_attention(
        *(x, products, norm_weight, 1e-3),
        cos=cos,
        sin=sin,
        head_size=HEAD,
        row_layouts=LAYOUTS,
        scaling=0.3,
    )
    torch.testing.assert_close(found, expected)
    learned = [*factors_of(products), *([x] if wants_x else [])]
    for ours, theirs in zip(
        torch.autograd.grad(found, learned, direction),
        torch.autograd.grad(expected, learned, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
