"""How much one training may ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingLimits:
    """What one training may ask for. Each is a key under ``training.limits`` of the config.

    Args:
        max_epochs: Largest ``num_epochs``.
        max_batch_size: Largest ``batch_size``.
        max_accumulate_steps: Largest ``accumulate_steps``.
        max_source_length: Largest ``max_source_length``, in tokens.
        max_target_length: Largest ``max_target_length``, in tokens.
        max_virtual_tokens: Largest ``num_virtual_tokens``.
        max_lora_rank: Largest rank of a LoRA.
        max_classes: Most labels of a classification.
        max_processes: Largest ``num_processes``.
    """

    max_epochs: int = 1000
    max_batch_size: int = 1024
    max_accumulate_steps: int = 1024
    max_source_length: int = 32_768
    max_target_length: int = 32_768
    max_virtual_tokens: int = 1024
    max_lora_rank: int = 1024
    max_classes: int = 1000
    max_processes: int = 8


#: For callers who answer to no server: only nonsense is refused.
UNLIMITED = TrainingLimits(*[2**31] * len(dataclasses.fields(TrainingLimits)))
