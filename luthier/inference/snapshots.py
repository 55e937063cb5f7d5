"""Adapters as they were when their requests came, one copy of each content for all of them.

Somebody may tune an adapter on while requests run with it. A request keeps what it came with; the
next one gets the tensors as they are then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from luthier.adapters.base import Adapter


class Snapshots:
    """Copies that live as long as a request holds them. Thread-safe."""

    def __init__(self) -> None:
        self._copies: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._copies)

    def take(
        self, adapter: Adapter, *, is_kept: Callable[[str], bool] | None = None
    ) -> tuple[str, Adapter]:
        """What a request that comes now is to run with.

        Args:
            adapter: The caller's, who may change it at any moment.
            is_kept: Told a content hash; whether nobody will ask for tensors of that content.

        Returns:
            The hash of the adapter's content, and a copy that has it and keeps it; the adapter
            itself where there is nothing to copy.
        """
        key = adapter.content_hash()
        if is_kept is not None and is_kept(key):
            return key, adapter
        with self._lock:
            copy = self._copies.get(key)
        if copy is not None:
            return key, copy
        copy = adapter.snapshot()
        if copy is adapter:
            return key, adapter
        # Not the hash from above: it may have been changed since, or even while it was copied.
        key = copy.content_hash()
        with self._lock:
            return key, self._copies.setdefault(key, copy)

    def taken(self, adapter: Adapter) -> Adapter:
        """As ``take``, without the hash, which of a whole model costs more than a glance.

        Args:
            adapter: As for ``take``.

        Returns:
            As ``take``.
        """
        return adapter if adapter.changes() is not None else self.take(adapter)[1]
