"""What the batched engine asks of whatever runs its base model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from luthier.inference.batch_rows import RowSlice, SliceLogits
from luthier.inference.kv_cache import RangeAllocator


class Runner(ABC):
    """Forward passes for slices of many rows. One thread at a time.

    Attributes:
        allocator: Of the ranges in which rows keep their keys and values.
    """

    allocator: RangeAllocator

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
    def num_ready(self, adapter_key: str) -> int:
        """Virtual tokens of this adapter whose keys and values need not be computed again.

        Args:
            adapter_key: A row's ``shared_key``; nothing is ready for "".

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
