"""LoRA+: a learning rate of its own for B."""

from __future__ import annotations

from typing import Any

from luthier.adapters.base import Adapter

_B_SUFFIX = ".lora_B.weight"


def lora_plus_groups(
    adapter: Adapter, *, learning_rate: float, ratio: float
) -> list[dict[str, Any]]:
    """An adapter's parameters as groups for a torch optimizer.

    Args:
        adapter: Any; without B factors there is one group.
        learning_rate: Of everything but B.
        ratio: Learning rate of B over ``learning_rate``; 1 is plain LoRA.

    Returns:
        Groups with ``params``, ``lr`` and ``lr_factor``: what a schedule multiplies its rate with.

    Source:
        Hayou et al. 2024, arXiv 2402.12354: 16 is their advice. PEFT gives vectors the rate of B
        too; here they keep the other one, as in the paper.
    """
    others = [p for name, p in adapter.named_parameters() if not name.endswith(_B_SUFFIX)]
    factors_b = [p for name, p in adapter.named_parameters() if name.endswith(_B_SUFFIX)]
    groups = [
        {"params": others, "lr": learning_rate, "lr_factor": 1.0},
        {"params": factors_b, "lr": learning_rate * ratio, "lr_factor": ratio},
    ]
    return [group for group in groups if group["params"]]
