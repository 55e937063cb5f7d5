"""What an operator may choose about an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run.

    Args:
        max_running: Rows generated at the same time, at most, >= 1.
        max_waiting: Requests accepted and not started, at most; the next one is refused with
            ``CapacityError``.
        num_threads: Threads of the plain engine, one row each, never more than ``max_running``.
    """

    max_running: int = 32
    max_waiting: int = 1024
    num_threads: int = 4
