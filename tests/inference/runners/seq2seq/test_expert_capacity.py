from __future__ import annotations

import torch
from torch import nn
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)

from luthier.inference.runners.seq2seq.expert_capacity import drops_tokens, let_experts_take_all


def layers() -> list[nn.Module]:
    switch = SwitchTransformersConfig(d_model=8, d_ff=12, num_experts=2, expert_capacity=1)
    nllb = NllbMoeConfig(
        d_model=8, num_experts=3, moe_eval_capacity_token_fraction=0.1, activation_dropout=0.0
    )
    torch.manual_seed(1)
    return [SwitchTransformersSparseMLP(switch).eval(), NllbMoeSparseMLP(nllb, ffn_dim=12).eval()]


@torch.no_grad()
def outputs(layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    output = layer(tokens)
    mixed: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return mixed


def test_many_tokens_get_what_each_gets_alone() -> None:
    tokens = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(2))
    for layer in layers():
        alone = torch.cat([outputs(layer, each) for each in tokens.split(1, dim=1)], dim=1)
        assert not torch.allclose(outputs(layer, tokens), alone)
        let_experts_take_all(layer)
        torch.testing.assert_close(outputs(layer, tokens), alone)


def test_routers_with_a_capacity_are_found() -> None:
    assert all(drops_tokens(layer) for layer in layers())
    assert not drops_tokens(nn.Linear(2, 2))
