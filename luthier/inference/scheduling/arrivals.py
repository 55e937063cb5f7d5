"""Rows whose adapter is on its way to the device, and the hold that each row has on its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import alog

from luthier.adapters.base import Adapter
from luthier.errors import LuthierError
from luthier.inference.base import AdapterStatus
from luthier.inference.batch_rows import BatchRow
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.pool.adapter_pool import AdapterPool
from luthier.inference.deltas.pool.resident_adapters import Pin

log = alog.use_channel(__name__)


class Arrivals:
    """Lets a row into the batch once its deltas are where steps can use them.

    Not thread-safe: the engine's lock guards it.

    Args:
        tables: Of the runner; None if it adds no deltas.
        max_device_bytes: Of what adapters have on the device.
        max_host_bytes: Of what is kept of them in host memory beside it.
        max_load_seconds: Longest that one may take to be read; 0 is for ever.
        when_ready: Called with a row that had to wait, and the error that it must end with, if
            any; from another thread, without the lock.
    """

    def __init__(
        self,
        tables: DeltaTables | None,
        *,
        max_device_bytes: int,
        max_host_bytes: int,
        max_load_seconds: float = 0.0,
        when_ready: Callable[[BatchRow, LuthierError | None], None],
    ) -> None:
        self._tables = tables
        self._max_device_bytes = max_device_bytes
        self._when_ready = when_ready
        self._pins: dict[BatchRow, Pin] = {}
        self._waiting: dict[BatchRow, None] = {}
        self.pool = (
            None
            if tables is None
            else AdapterPool(
                tables,
                max_device_bytes=max_device_bytes,
                max_host_bytes=max_host_bytes,
                max_load_seconds=max_load_seconds,
            )
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[BatchRow]:
        return iter(list(self._waiting))

    def takes(self, adapter: Adapter) -> bool:
        """Whether all that the adapter does is done to layers, and steps can do it. Needs no lock.

        Whole layers that alone would take more than all adapters may are not taken.
        """
        deltas, modules, tables = adapter.delta_layers(), adapter.whole_layers(), self._tables
        if tables is None or not (deltas or modules):
            return False
        if not tables.takes(deltas, modules):
            return False
        return tables.base_bytes(modules) <= self._max_device_bytes

    def keeps(self, key: str) -> bool:
        """Whether nobody will ask an adapter of this content for its deltas. Needs no lock."""
        return self.pool is not None and self.pool.keeps(key)

    def expect(self, row: BatchRow, adapter: Adapter | None) -> bool:
        """Hold the adapter for a row until ``forget``.

        Args:
            row: New.
            adapter: One that ``takes`` accepts and nobody changes; None if ``keeps`` said yes.

        Returns:
            True if the row may run at once; otherwise ``when_ready`` is called.

        Raises:
            EngineError: If the engine is closed.
            EngineDownError: If the adapter must be read, and cannot be now.
            ReplacedError: Without an adapter, if it was dropped since ``keeps`` said yes.
        """
        assert self.pool is not None
        pin = self.pool.pin(row.adapter_key, adapter, lambda error: self._when_ready(row, error))
        self._pins[row] = pin
        if not pin.is_ready:
            self._waiting[row] = None
        return pin.is_ready

    @property
    def failure(self) -> str:
        """Why no adapter can be brought now, or ""."""
        return "" if self.pool is None else self.pool.failure

    def arrive(self, row: BatchRow) -> bool:
        """Let a row go that waited; False if it was forgotten meanwhile."""
        if row not in self._waiting:
            return False
        del self._waiting[row]
        return True

    def forget(self, row: BatchRow) -> bool:
        """Let go of the adapter of a row that ended; True if the row was waiting for it."""
        pin = self._pins.pop(row, None)
        if pin is not None:
            pin.release()
        return self.arrive(row)

    def pool_status(self) -> AdapterStatus | None:
        """Which deltas are where, or None if there is no place for any. Needs no lock."""
        return None if self.pool is None else self.pool.status()

    def close(self) -> None:
        """Load nothing more. Call it without the engine's lock. Idempotent."""
        if self.pool is not None:
            self.pool.close()
