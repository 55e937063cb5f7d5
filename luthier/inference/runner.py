"""What the batched engine asks of whatever runs its base model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from luthier.inference.batch_rows import BatchRow, RowSlice, SliceLogits
from luthier.inference.delta_tables import DeltaTables
from luthier.inference.kv_cache import RangeAllocator
from luthier.resources.base_model import BaseModel


class Runner(ABC):
    """Forward passes for slices of many rows. One thread at a time.

    Attributes:
        allocator: Of the ranges in which rows keep their keys and values.
        deltas: Low-rank deltas that rows may use under their ``adapter_key``; None if it adds none.
    """

    allocator: RangeAllocator
    deltas: DeltaTables | None = None

    @abstractmethod
    def __init__(self, base_model: BaseModel, *, max_kv_bytes: int, max_rows: int) -> None:
        """Take a model and see whether it can be run.

        Args:
            base_model: Its weights are shared, not copied.
            max_kv_bytes: Of keys and values.
            max_rows: Rows at the same time, at most.

        Raises:
            NotSupportedError: If the model cannot be run this way; the message says why.
        """

    @abstractmethod
    def begin(self, slices: Sequence[RowSlice]) -> None:
        """Do for rows that have nothing computed yet what must come before their first slice.

        Fills parts of their ranges; doing it again changes nothing.

        Args:
            slices: Of the next step, planned with ``num_ready`` in mind.
        """

    @abstractmethod
    def run(self, slices: Sequence[RowSlice]) -> list[SliceLogits]:
        """Compute the slices and store their keys and values; running them again gives the same.

        Args:
            slices: One per row, after ``begin``; each row's range holds everything before its
                slice and has room for the slice.

        Returns:
            The logits of those slices that need any.
        """

    @abstractmethod
    def num_ready(self, row: BatchRow) -> int:
        """Virtual tokens of a row whose keys and values need not be computed again.

        Args:
            row: One that has no range yet.

        Returns:
            Their number; it stays true until the next ``run``.
        """

    @abstractmethod
    def move(self, source: int, target: int, count: int) -> None:
        """Follow a row's range to its new place.

        Args:
            source: Where its tokens are.
            target: Where they shall be; the two do not overlap.
            count: How many.
        """
