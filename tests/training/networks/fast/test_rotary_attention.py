"""Rotary attention against transformers' rotation and packed attention, with gradients."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from luthier.training.data.packing import RowGroup, RowLayout
from luthier.training.networks.fast.rotary_attention import rotary_attention
from luthier.training.networks.packed_attention import packed_attention


def test_output_and_gradients_are_those_of_rotation_and_packed_attention() -> None:
    layouts = [RowLayout(3, (RowGroup(2, 4), RowGroup(1, 9))), RowLayout(0, (RowGroup(1, 5),))]
    num_tokens = sum(sum(layout.sizes) for layout in layouts)
    generator = torch.Generator().manual_seed(1)
    query, key, value, direction = (
        torch.randn(num_tokens, heads, 8, generator=generator, dtype=torch.float64)
        for heads in (6, 2, 2, 6)
    )
    angles = torch.rand(num_tokens, 8, generator=generator, dtype=torch.float64) * 6
    cos, sin = angles.cos(), angles.sin()
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]

    heads_first = [tensor.transpose(0, 1)[None] for tensor in inputs]
    turned = apply_rotary_pos_emb(*heads_first[:2], cos[None], sin[None])
    expected, _ = packed_attention(
        object(), *turned, heads_first[2], None, row_layouts=layouts, scaling=0.3
    )
    found = rotary_attention(*inputs, cos, sin, row_layouts=layouts, scaling=0.3)
    torch.testing.assert_close(found, expected[0].flatten(1))
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, direction.flatten(1)),
        torch.autograd.grad(expected, inputs, direction[None]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
