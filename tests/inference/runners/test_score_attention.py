from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from luthier.inference.runners.score_attention import ScoreOptions, score_attention

HEADS, KV_HEADS, DIM = 6, 2, 4


def made(num_new: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, HEADS, num_new, DIM), (1, KV_HEADS, num_keys, DIM), (1, KV_HEADS, num_keys, DIM)]
    query, keys, values = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, keys, values


@pytest.mark.parametrize(("num_new", "num_keys"), [(1, 1), (1, 9), (4, 4), (3, 7)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_without_options_it_is_the_fused_attention(
    num_new: int, num_keys: int, is_masked: bool
) -> None:
    query, keys, values = made(num_new, num_keys)
    mask = torch.ones(num_new, num_keys, dtype=torch.bool).tril(diagonal=num_keys - num_new)
    if is_masked and num_keys > num_new:
        mask[:, 0] = False
    got = score_attention(query, keys, values, mask if is_masked else None, ScoreOptions())
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(got, expected)


def test_scores_are_capped_and_sinks_take_their_part_of_the_weight() -> None:
    query, keys, values = made(2, 5)
    sinks = torch.linspace(-1, 2, HEADS)
    options = ScoreOptions(scaling=0.7, softcap=1.5, sinks=sinks)
    got = score_attention(query, keys, values, None, options)
    for head in range(HEADS):
        of_keys, of_values = keys[0, head // 3], values[0, head // 3]
        for token in range(2):
            num_seen = 4 + token
            raw = [0.7 * float(query[0, head, token] @ of_keys[k]) for k in range(num_seen)]
            capped = 1.5 * torch.tanh(torch.tensor(raw) / 1.5)
            powers = capped.exp()
            weights = powers / (powers.sum() + sinks[head].exp())
            torch.testing.assert_close(got[0, head, token], weights @ of_values[:num_seen])
