"""What the batched engine asks of whatever runs its base model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.inference.batch_rows import RowSlice, SliceLogits
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.merged_adapter import MergeOptions
from luthier.inference.memory.kv_memory import KvMemory
from luthier.resources.base_model import BaseModel


@dataclass(frozen=True)
class RunnerLimits:
    """How much a runner may hold.

    Args:
        max_kv_bytes: Of keys and values.
        max_rows: Rows at the same time, at most.
        max_prefix_bytes: Of what is kept of soft prompts and other prefixes, for rows to come.
        merging: When the adapter that all rows use is merged; None is never.
    """

    max_kv_bytes: int
    max_rows: int
    max_prefix_bytes: int = 0
    merging: MergeOptions | None = None


class Runner(ABC):
    """Forward passes for slices of many rows. One thread at a time.

    Attributes:
        memory: Where rows keep their keys and values, and prefixes that they may start from.
        deltas: Low-rank deltas that rows may use under their ``adapter_key``; None if it adds none.
        gives_hidden: Whether it gives hidden states to slices that want them.
    """

    memory: KvMemory
    deltas: DeltaTables | None = None
    gives_hidden: bool = False

    @abstractmethod
    def __init__(self, base_model: BaseModel, limits: RunnerLimits) -> None:
        """Take a model and see whether it can be run.

        Args:
            base_model: Its weights are shared, not copied.
            limits: Of what it holds.

        Raises:
            NotSupportedError: If the model cannot be run this way; the message says why.
        """

    def begin(self, slices: Sequence[RowSlice]) -> None:
        """Do for rows that have nothing computed yet what must come before their first slice.

        Fills parts of their ranges; doing it again changes nothing.

        Args:
            slices: Of the next step.
        """
        return

    def use_int8_weights(self) -> int:
        """Multiply by int8 weights from now on; see ``int8_weights``.

        Returns:
            How many layers do; 0 if this runner cannot.
        """
        return 0

    @abstractmethod
    def run(self, slices: Sequence[RowSlice]) -> list[SliceLogits]:
        """Compute the slices and store their keys and values; running them again gives the same.

        Args:
            slices: One per row, after ``begin``; each row's range holds everything before its
                slice and has room for the slice.

        Returns:
            The logits, or the hidden state, of those slices that need any.
        """

    def close(self) -> None:
        """End what was begun beside the passes. No pass may run meanwhile. Idempotent."""
        return
