"""One engine per copy of a base model."""

from __future__ import annotations

import atexit
import threading
import weakref

import alog

from luthier.errors import NotSupportedError
from luthier.inference.base import Engine
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel
from luthier.resources.cleanup import run_soon

log = alog.use_channel(__name__)

#: Held while an engine is made, which takes seconds: one at a time.
_making = threading.RLock()
#: Held for a look at the engines, or a change; never for long.
_lock = threading.RLock()
_engines: dict[int, Engine] = {}


def engine_for(base_model: BaseModel, *, options: EngineOptions | None = None) -> Engine:
    """The engine that serves ``base_model``, started on first use.

    Every caller with the same ``BaseModel`` object gets the same engine. It does not keep the
    model alive: when the last holder drops it, the engine is closed. An engine that died stays,
    so that its status can be seen; one that was closed by ``close_all`` is replaced.

    Args:
        base_model: A loaded model.
        options: Only those of the first call count.

    Returns:
        The engine; it is shared, so only ``close_all`` should close it.
    """
    engine = _running(base_model)
    if engine is not None:
        return engine
    with _making:
        engine = _running(base_model)
        if engine is None:
            engine = make_engine(base_model, options or EngineOptions())
            with _lock:
                _engines[id(base_model)] = engine
            finalizer = weakref.finalize(base_model, _retire, id(base_model))
            finalizer.atexit = False
        return engine


def has_engine(base_model: BaseModel) -> bool:
    """Whether ``engine_for`` returns at once; else it may take seconds.

    Args:
        base_model: A loaded model.

    Returns:
        False if an event loop must not call it.
    """
    return _running(base_model) is not None


def _running(base_model: BaseModel) -> Engine | None:
    with _lock:
        return _engines.get(id(base_model))


def make_engine(base_model: BaseModel, options: EngineOptions) -> Engine:
    """A new engine that nobody shares: the batched one for models that it can run, the plain one
    for all others; in a process of its own if the options say so.

    Args:
        base_model: A loaded model.
        options: Of the engine.

    Returns:
        The engine; whoever called closes it.

    Raises:
        LuthierError: If it cannot be started.
    """
    if options.process is not None:
        return ProcessEngine(base_model, options)
    try:
        return BatchedEngine(base_model, options)
    except NotSupportedError as reason:
        log.info("Rows of base model %s run each by itself: %s", base_model.name, reason)
        return PlainEngine(base_model, options)


def engines() -> list[Engine]:
    """The engines that run now, for health checks."""
    with _lock:
        return list(_engines.values())


def close_all() -> None:
    """Close every engine, ending their streams with CANCELLED."""
    with _making, _lock:
        closing = list(_engines.values())
        _engines.clear()
    for engine in closing:
        engine.close()


def _retire(key: int) -> None:
    # May run in any thread at any moment, an engine's own included, so it must not wait.
    with _lock:
        engine = _engines.pop(key, None)
    if engine is not None:
        run_soon(engine.close)


atexit.register(close_all)
