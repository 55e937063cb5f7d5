"""Experts that take a limited number of tokens of a text: Switch Transformers and NLLB-MoE.

What is beyond an expert's capacity goes past all experts. That depends on which tokens come
together, so texts are encoded one by one. A decoder that writes token by token gives its router one
at a time, which is never beyond a limit; in a batch the limit must not be one for all rows. Nor are
virtual tokens before a decoder limited here, which the model itself is given all at once.
"""

from __future__ import annotations

import sys

from torch import nn
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersTop1Router,
)

_ROUTERS = (NllbMoeTop2Router, SwitchTransformersTop1Router)


def drops_tokens(network: nn.Module) -> bool:
    """Whether what a network makes of a token may depend on how many others there are."""
    return any(isinstance(module, _ROUTERS) for module in network.modules())


def let_experts_take_all(network: nn.Module) -> None:
    """Let no token go past the experts.

    Args:
        network: One that nobody shares; its routers are changed.
    """
    for module in network.modules():
        if isinstance(module, _ROUTERS):
            module.expert_capacity = sys.maxsize
        if isinstance(module, NllbMoeTop2Router):
            module.moe_eval_capacity_token_fraction = 0.0  # else the capacity is counted anew
