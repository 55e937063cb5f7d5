"""What an operator may choose about an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run.

    Args:
        max_running: Rows generated at the same time, at most, >= 1.
        max_waiting: Requests accepted and not started, at most; the next one is refused with
            ``CapacityError``.
        num_threads: Threads of the plain engine, one row each, never more than ``max_running``.
        max_kv_bytes: Keys and values of all rows of the batched engine, in bytes.
        max_adapter_bytes: Low-rank deltas of adapters beside the base on the device, in bytes.
        max_host_adapter_bytes: Those kept in host memory for the next time, in bytes; not used
            where the device is the CPU.
        max_step_tokens: Tokens that one step of the batched engine computes; None is what suits
            the device. Fewer mean steadier streams, more mean faster prompts.
    """

    max_running: int = 32
    max_waiting: int = 1024
    num_threads: int = 4
    max_kv_bytes: int = 2**30
    max_adapter_bytes: int = 2**30
    max_host_adapter_bytes: int = 2**32
    max_step_tokens: int | None = None

    def step_tokens_on(self, device: torch.device) -> int:
        """``max_step_tokens``, or the device's own: a core is busy with far fewer than a GPU."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return 128 if device.type == "cpu" else 2048
