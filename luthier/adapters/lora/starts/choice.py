"""Starts of LoRA that look at data: EVA, CorDA and LoRA-GA. Definitions are PEFT's.

    eva      A: the directions in which a layer's inputs differ most, more of them (a higher rank)
             where they explain more. B: 0, so nothing changes at first.
    corda    The part of the weight that matters most (ipm) or least (kpm) to the inputs is learned.
    lora_ga  A and B from the largest parts of the weight's gradient: the first update goes where
             that of full fine-tuning would.

The deltas of the last two are no zeros at first; as with PiSSA, the start is subtracted again and
the base weight stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from transformers import PreTrainedModel

from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.starts.corda import CordaStart
from luthier.adapters.lora.starts.eva import EvaStart
from luthier.adapters.lora.starts.lora_ga import GradientStart
from luthier.adapters.lora.targets import LoraTarget

#: Any of them.
AnyLoraStart: TypeAlias = EvaStart | CordaStart | GradientStart

_STARTS: Mapping[str, type[AnyLoraStart]] = {
    "eva": EvaStart,
    "corda": CordaStart,
    "lora_ga": GradientStart,
}


def measured_start(
    adapter: LoraAdapter,
    model: PreTrainedModel,
    targets: Mapping[str, LoraTarget],
    *,
    seed: int,
) -> AnyLoraStart | None:
    """What an adapter has to see before its first update.

    Args:
        adapter: New; begun by the probe.
        model: The base model's network; not changed.
        targets: Of the adapter.
        seed: Of the training.

    Returns:
        The probe, or None if the adapter's initialisation looks at no data.

    Raises:
        InvalidInputError: If a rank does not suit the initialisation.
    """
    kind = _STARTS.get(adapter.config.initialisation)
    return None if kind is None else kind(adapter, model, targets, seed=seed)
