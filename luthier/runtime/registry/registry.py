"""From a model id to a loaded module: lazily, once, off the event loop.

A model is loaded by its first request. Later requests see at once that its folder was replaced or
removed, because each looks at the folder's version. A module that was replaced, removed or evicted
stays until the last request that uses it has ended, and is then released. What a module leaves on
disk may be replaced before it is read; its requests then start again with what is there now.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import alog

from luthier.errors import (
    CapacityError,
    ConflictError,
    LuthierError,
    ModelNotFoundError,
    ReplacedError,
)
from luthier.runtime.registry.model_folder import ModelsDir, Version
from luthier.runtime.registry.served_module import LoadModule, ServedModule

log = alog.use_channel(__name__)

#: Each further one needs the folder to be replaced again at the worst moment.
_MAX_LOADS = 10
T = TypeVar("T")


@dataclass
class _Entry:
    """One loaded (or loading) content of one model."""

    model_id: str
    version: Version
    loading: asyncio.Task[ServedModule]
    num_users: int = 0
    is_retired: bool = False


class ModelRegistry:
    """Serves the models of one folder. Lives on one event loop.

    Args:
        models: Where the models lie.
        load: Reads one.
        max_loaded_models: Beyond it the least recently used idle model is released.
        num_load_threads: Models that load at the same time.
    """

    def __init__(
        self,
        models: ModelsDir,
        *,
        load: LoadModule,
        max_loaded_models: int,
        num_load_threads: int = 2,
    ) -> None:
        self.models = models
        self._load = load
        self._max_loaded_models = max_loaded_models
        self._threads = ThreadPoolExecutor(num_load_threads, thread_name_prefix="load-model")
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._releases: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @asynccontextmanager
    async def use(self, model_id: str) -> AsyncIterator[ServedModule]:
        """The model, loaded, for the length of the ``async with`` block.

        Args:
            model_id: As a request brought it.

        Yields:
            A module that is not released inside the block, whatever happens to the model.

        Raises:
            NameNotAllowedError: If the name is no model's name.
            ModelNotFoundError: If there is no such model.
            ArtifactError: If its files cannot be read.
        """
        entry = self._entry(model_id)
        entry.num_users += 1
        try:
            # Shielded: the load serves others too, even if this request is cancelled.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.num_users -= 1
            if _has_failed(entry.loading) and self._entries.get(model_id) is entry:
                self._retire(entry)
            self._release_if_unused(entry)
            self._evict()

    async def run(self, model_id: str, work: Callable[[ServedModule], Awaitable[T]]) -> T:
        """Do something with the model, as it is now.

        Args:
            model_id: As a request brought it.
            work: Done anew if the model was replaced before it could begin.

        Returns:
            What ``work`` returns.

        Raises:
            LuthierError: As for ``use``; from ``work``.
        """
        for _ in range(_MAX_LOADS):
            async with self.use(model_id) as module:
                try:
                    return await work(module)
                except ReplacedError as error:
                    self.give_up(model_id, module, error)
        raise _restless(model_id)

    async def stream(
        self, model_id: str, work: Callable[[ServedModule], AsyncGenerator[T]]
    ) -> AsyncGenerator[T]:
        """As ``run``, piece by piece.

        Args:
            model_id: As a request brought it.
            work: Done anew if the model was replaced before there was a first piece.

        Yields:
            What ``work`` yields.

        Raises:
            LuthierError: As for ``run``.
        """
        for _ in range(_MAX_LOADS):
            has_begun = False
            async with self.use(model_id) as module, aclosing(work(module)) as pieces:
                try:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                    return
                except ReplacedError as error:
                    if has_begun:
                        raise
                    self.give_up(model_id, module, error)
        raise _restless(model_id)

    def give_up(self, model_id: str, module: ServedModule, error: ReplacedError) -> None:
        """Serve a module to nobody new whose files are not those that it was made from.

        Args:
            model_id: A model's name.
            module: From ``use``.
            error: What told of it.
        """
        log.info("model was replaced: model_id=%s: %s", model_id, error)
        entry = self._entries.get(model_id)
        if entry is not None and self.loaded_module(model_id) is module:
            self._retire(entry)

    def is_loaded(self, model_id: str) -> bool:
        """True if the model is in memory.

        Args:
            model_id: A model's name.

        Returns:
            False while it loads.
        """
        entry = self._entries.get(model_id)
        return entry is not None and entry.loading.done() and not _has_failed(entry.loading)

    def loaded_module(self, model_id: str) -> ServedModule | None:
        """The module if it is in memory; only to look at, not to run.

        Args:
            model_id: A model's name.

        Returns:
            The module or None.
        """
        return self._entries[model_id].loading.result() if self.is_loaded(model_id) else None

    def retire(self, model_id: str) -> None:
        """Serve this content of the model to nobody new; release it after its last request.

        Args:
            model_id: A model's name; need not be loaded.
        """
        entry = self._entries.get(model_id)
        if entry is not None:
            self._retire(entry)

    async def close(self) -> None:
        """Release every model that no request uses, and wait for that. Idempotent."""
        self._is_closed = True
        for entry in list(self._entries.values()):
            self._retire(entry)
        while self._releases:
            await asyncio.gather(*self._releases)
        self._threads.shutdown(wait=False)

    def _entry(self, model_id: str) -> _Entry:
        """The entry for the model's present content; starts loading it if need be."""
        if self._is_closed:
            raise CapacityError("the server is stopping")
        version = self.models.version_of(model_id)
        entry = self._entries.get(model_id)
        if entry is not None and entry.version != version:
            self._retire(entry)
            entry = None
        if entry is None:
            loading = asyncio.get_running_loop().create_task(self._load_in_thread(model_id))
            entry = self._entries[model_id] = _Entry(model_id, version, loading)
        self._entries.move_to_end(model_id)
        return entry

    async def _load_in_thread(self, model_id: str) -> ServedModule:
        """Load the model, all of it from one content of its folder."""
        folder = self.models.folder_of(model_id)
        loop = asyncio.get_running_loop()
        for _ in range(_MAX_LOADS):
            version = self.models.version_of(model_id)
            try:
                module = await loop.run_in_executor(self._threads, self._load, folder)
            except (LuthierError, OSError):
                if self.models.version_of(model_id) == version:
                    raise
                continue  # half of each content is nobody's fault
            if self._is_still(model_id, version):
                log.info("model loaded: model_id=%s", model_id)
                return module
            await asyncio.to_thread(module.release)
        raise _restless(model_id)

    def _is_still(self, model_id: str, version: Version) -> bool:
        try:
            return self.models.version_of(model_id) == version
        except ModelNotFoundError:
            return False

    def _retire(self, entry: _Entry) -> None:
        if self._entries.get(entry.model_id) is entry:
            del self._entries[entry.model_id]
        entry.is_retired = True
        self._release_if_unused(entry)

    def _release_if_unused(self, entry: _Entry) -> None:
        if not entry.is_retired or entry.num_users:
            return
        # More users may still come and go in this step; the flag keeps the release single.
        entry.is_retired = False
        release = asyncio.get_running_loop().create_task(self._release(entry))
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)

    async def _release(self, entry: _Entry) -> None:
        try:
            module = await entry.loading
        except Exception:  # noqa: BLE001  a background task: whoever asked for the model was told
            return
        await asyncio.to_thread(module.release)
        log.info("model released: model_id=%s", entry.model_id)

    def _evict(self) -> None:
        for entry in list(self._entries.values()):
            if len(self._entries) <= self._max_loaded_models:
                return
            if not entry.num_users:
                self._retire(entry)


def _has_failed(loading: asyncio.Task[ServedModule]) -> bool:
    return loading.done() and (loading.cancelled() or loading.exception() is not None)


def _restless(model_id: str) -> ConflictError:
    return ConflictError(
        f"model {model_id!r} was replaced {_MAX_LOADS} times while it was being loaded"
    )
