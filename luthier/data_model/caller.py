"""On whose behalf a request is made: doors say it, engines share their time by it.

It travels as a context variable, because it is no parameter of any task: what a model answers never
depends on it. Tasks and ``asyncio.to_thread`` take the context along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who asks, as far as scheduling is concerned.

    Args:
        tenant: Shares an engine fairly with the other tenants; "" is nobody in particular.
        priority: Among the requests of the same tenant; more is sooner.
    """

    tenant: str = ""
    priority: int = 0


_current: ContextVar[Caller] = ContextVar("luthier_caller")
_NOBODY = Caller()


def current_caller() -> Caller:
    """On whose behalf this code runs; nobody in particular outside ``acting_for``."""
    return _current.get(_NOBODY)


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Run the block on behalf of somebody.

    Args:
        caller: Who.

    Yields:
        Once.
    """
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
