"""What an operator may choose about an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from luthier.errors import CapacityError, ConfigError, InvalidInputError
from luthier.inference.deltas.merged_adapter import MergeOptions
from luthier.inference.scheduling.scheduling_rules import SchedulingRules

#: The key that stands for all tenants without a weight of their own.
OTHER_TENANTS = "__default__"
#: What an engine may multiply by.
WEIGHTS = ("float", "int8")


@dataclass(frozen=True)
class ProcessOptions:
    """How an engine is run in a process of its own. Times are in seconds.

    Args:
        start_seconds: Until it must be ready, > 0; then it is killed.
        stop_seconds: That it gets to end by itself, > 0.
        restart_seconds: From its death to the next start; twice as long after each further death
            that came before it had been ready for ``max_restart_seconds``.
        max_restart_seconds: The longest such pause.
        max_adapter_bytes: Of adapters that lie in no folder, which the process keeps for requests
            to come; others are sent again.
    """

    start_seconds: float = 300.0
    stop_seconds: float = 10.0
    restart_seconds: float = 1.0
    max_restart_seconds: float = 60.0
    max_adapter_bytes: int = 2**30


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run.

    Args:
        max_running: Rows generated at the same time, at most, >= 1.
        max_beam_rows: Those of beam searches among them, at most, each beam one; a request with
            more beams is refused.
        max_waiting: Requests accepted and not started, at most; the next one is refused with
            ``CapacityError``.
        max_waiting_per_tenant: The same for any one tenant that is named.
        tenant_weights: How much a tenant gets for each of one that weighs 1, >= 1, by name;
            ``__default__`` is for all others and requests without a tenant.
        max_priority: Largest ``priority`` of a request; the smallest is its negative.
        ageing_steps: Steps after which a waiting request counts as one priority higher, >= 1.
        turn_tokens: Tokens that a row may generate, >= 1, before it must make way for an adapter
            or tenant that has no row at all.
        num_threads: Threads of the plain engine, one row each, never more than ``max_running``.
        max_kv_bytes: Keys and values of all rows of the batched engine, in bytes.
        max_prefix_bytes: Keys and values of soft prompts and other beginnings that rows to come may
            start from, in bytes; 0 computes all of them anew.
        max_adapter_bytes: Low-rank deltas, and whole layers, of adapters beside the base on the
            device, in bytes.
        max_host_adapter_bytes: Those kept in host memory for the next time, in bytes; not used
            where the device is the CPU.
        max_load_seconds: Longest that an adapter may take to be read before its requests end with
            ``EngineDownError``; 0 is for ever.
        merge_after_steps: Steps in a row whose rows all have one LoRA after which it is merged, and
            without it after which the merged copy is dropped; 0 merges none.
        max_merged_bytes: Of the merged copy of the layers that it changes, in bytes; one that would
            take more is not merged.
        max_step_tokens: Tokens that one step of the batched engine computes; None is what suits
            the device. Fewer mean steadier streams, more mean faster prompts; two for each of
            ``max_running`` are always used, and up to a quarter more where that ends prompts.
        prompt_lookup_tokens: Tokens that a row of a causal model guesses in a step, at most,
            by what followed its last tokens before; 0 is none.
        prompt_lookup_max_rows: Rows of a step up to which that is done, >= 1.
        max_step_seconds: Longest that a step may last before the engine counts as one that hangs;
            0 is for ever. Also the longest silence of an engine in a process of its own.
        weights: ``float`` as they are; ``int8`` is faster on CPUs and says about the same.
        process: Run the engine in a process of its own; None is a thread of this one.
    """

    max_running: int = 32
    max_beam_rows: int = 16
    max_waiting: int = 1024
    max_waiting_per_tenant: int = 256
    tenant_weights: Mapping[str, int] = field(default_factory=dict)
    max_priority: int = 10
    ageing_steps: int = 64
    turn_tokens: int = 128
    num_threads: int = 4
    max_kv_bytes: int = 2**30
    max_prefix_bytes: int = 2**29
    max_adapter_bytes: int = 2**30
    max_host_adapter_bytes: int = 2**32
    max_load_seconds: float = 120.0
    merge_after_steps: int = 128
    max_merged_bytes: int = 2**30
    max_step_tokens: int | None = None
    prompt_lookup_tokens: int = 0
    prompt_lookup_max_rows: int = 4
    max_step_seconds: float = 300.0
    weights: str = "float"
    process: ProcessOptions | None = None

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            words = ", ".join(WEIGHTS)
            raise ConfigError(f"'weights' must be one of {words}, got {self.weights!r}")

    def step_tokens_on(self, device: torch.device) -> int:
        """``max_step_tokens``, or the device's own: a core is busy with far fewer than a GPU."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return 128 if device.type == "cpu" else 2048

    def scheduling_on(self, device: torch.device) -> SchedulingRules:
        """The part of the options that the batched engine's scheduler follows."""
        default = self.tenant_weights.get(OTHER_TENANTS, 1)
        return SchedulingRules(
            max_rows=self.max_running,
            max_beam_rows=self.max_beam_rows,
            max_step_tokens=self.step_tokens_on(device),
            turn_tokens=self.turn_tokens,
            ageing_steps=self.ageing_steps,
            weight_of=lambda tenant: self.tenant_weights.get(tenant, default),
        )

    @property
    def merging(self) -> MergeOptions:
        """The part of the options that says when an adapter is merged."""
        if self.weights != "float":  # a merged copy is float: it would say something else
            return MergeOptions()
        return MergeOptions(self.merge_after_steps, self.max_merged_bytes)

    def check_priority(self, priority: int) -> None:
        """Refuse a request whose priority is out of bounds.

        Args:
            priority: Its own.

        Raises:
            InvalidInputError: If it is too large or too small.
        """
        if abs(priority) > self.max_priority:
            raise InvalidInputError(
                f"'priority' must be in {-self.max_priority}..{self.max_priority}, got {priority}"
            )

    def check_beams(self, num_beams: int) -> None:
        """Refuse a request with more beams than may run at once.

        Args:
            num_beams: Its own.

        Raises:
            InvalidInputError: Naming the limit.
        """
        most = min(self.max_beam_rows, self.max_running)
        if num_beams > max(1, most):
            raise InvalidInputError(
                f"'num_beams' must be at most {most}, got {num_beams}: so many beams may run at "
                "once on one base model"
            )

    def check_waiting(
        self, num_waiting: int, *, num_of_tenant: int, tenant: str, base_model: str
    ) -> None:
        """Refuse a request where too many wait already.

        Args:
            num_waiting: Requests that wait, of all tenants.
            num_of_tenant: Those of the request's own.
            tenant: Its name; nameless ones have no limit of their own.
            base_model: For the message.

        Raises:
            CapacityError: Naming the limit.
        """
        if num_waiting >= self.max_waiting:
            raise CapacityError(
                f"{num_waiting} requests wait for base model {base_model!r}, at most "
                f"{self.max_waiting} may"
            )
        if tenant and num_of_tenant >= self.max_waiting_per_tenant:
            raise CapacityError(
                f"{num_of_tenant} requests of tenant {tenant!r} wait for base model "
                f"{base_model!r}, at most {self.max_waiting_per_tenant} of one tenant may"
            )
