"""One copy of each base model per process, shared by reference count."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import alog
import torch

from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.resources.hardware import parse_device, parse_dtype
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources, resolve_base_model
from luthier.resources.quantisation import parse_quantisation

log = alog.use_channel(__name__)

#: Place, number format, device, and how weights are held.
_Key = tuple[Path, torch.dtype, torch.device, str]


@dataclass(eq=False)
class _Copy:
    """A base model that is loaded or being loaded, and how many leases it has."""

    loaded: Future[BaseModel] = field(default_factory=Future)
    num_leases: int = 0


class BaseModelLease:
    """The right to use a base model until ``release``; also a context manager."""

    def __init__(self, base_model: BaseModel, store: BaseModelStore, key: _Key | None) -> None:
        self._base_model: BaseModel | None = base_model
        self._store = store
        self._key = key
        self._lock = threading.Lock()

    @property
    def base_model(self) -> BaseModel:
        """The shared copy.

        Raises:
            ConflictError: After ``release``.
        """
        if self._base_model is None:
            raise ConflictError("this lease of a base model was released")
        return self._base_model

    def release(self) -> None:
        """Give the copy back; the last release frees it. Idempotent, thread-safe."""
        with self._lock:
            if self._base_model is None:
                return
            self._base_model = None
        if self._key is not None:
            self._store._release(self._key)

    @contextmanager
    def kept_if_no_error(self) -> Iterator[BaseModel]:
        """Release if the block raises; after it, whoever was given the lease releases it.

        Yields:
            The shared copy.
        """
        with ExitStack() as stack:
            stack.callback(self.release)
            yield self.base_model
            stack.pop_all()

    def __enter__(self) -> BaseModel:
        return self.base_model

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class BaseModelStore:
    """Hands out base models by name. Thread-safe; each (place, dtype, device, quantization) is
    loaded once.

    Args:
        sources: Where names are looked up and what is allowed.
    """

    def __init__(self, sources: BaseModelSources) -> None:
        self.sources = sources
        self._lock = threading.Lock()
        self._copies: dict[_Key, _Copy] = {}
        self._in_memory: dict[str, BaseModel] = {}

    def add(self, base_model: BaseModel) -> None:
        """Offer a model that lives in memory under its own name, before every other source.

        Args:
            base_model: From ``BaseModel.from_memory``; the caller keeps it alive or removes it.

        Raises:
            ConflictError: If another model already has this name.
        """
        with self._lock:
            if self._in_memory.setdefault(base_model.name, base_model) is not base_model:
                raise ConflictError(f"a base model named {base_model.name!r} is already in memory")

    def remove(self, name: str) -> None:
        """Stop offering an in-memory model; leases in use keep it. Unknown names are ignored."""
        with self._lock:
            self._in_memory.pop(name, None)

    def in_memory(self, name: str) -> BaseModel | None:
        """The model that ``add`` offered under ``name``, or None. Changes nothing."""
        with self._lock:
            return self._in_memory.get(name)

    def acquire(
        self,
        name: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        quantization: str | None = None,
        from_request: bool = False,
    ) -> BaseModelLease:
        """Lease a base model, loading it if nobody has; blocks while it is being loaded.

        Args:
            name: As for ``resolve_base_model``, or the name of an in-memory model (whose dtype
                and device are what they are: the arguments are then ignored).
            dtype: None is the server's default.
            device: None is the server's default.
            quantization: A word of ``QUANTISATIONS``; None is none. A quantised copy is a copy of
                its own; of a model in memory each caller gets one.
            from_request: True if somebody else chose the name.

        Returns:
            A lease to be released once.

        Raises:
            LuthierError: As ``resolve_base_model`` and ``load_base_model`` say; every waiting
                caller gets it, and the next one tries again.
        """
        with self._lock:
            in_memory = self._in_memory.get(os.fspath(name))
        if in_memory is not None:
            return BaseModelLease(in_memory.quantised(quantization), self, None)
        location = resolve_base_model(name, self.sources, from_request=from_request)
        key = (
            location.path,
            parse_dtype(dtype or self.sources.default_dtype),
            parse_device(device or self.sources.default_device),
            parse_quantisation(quantization),
        )
        with self._lock:
            is_first = key not in self._copies
            copy = self._copies.setdefault(key, _Copy())
            copy.num_leases += 1
        if is_first:
            self._load(copy, key, location)
        return BaseModelLease(copy.loaded.result(), self, key)

    @property
    def num_loaded(self) -> int:
        """Copies in memory or being loaded, those given by ``add`` not counted."""
        with self._lock:
            return len(self._copies)

    def _load(self, copy: _Copy, key: _Key, location: BaseModelLocation) -> None:
        _, dtype, device, quantization = key
        try:
            base_model = load_base_model(
                location,
                dtype=dtype,
                device=device,
                quantization=quantization,
                sources=self.sources,
            )
        except BaseException as error:
            with self._lock:
                del self._copies[key]
            copy.loaded.set_exception(error)
            raise
        copy.loaded.set_result(base_model)
        log.info(
            "loaded base model %s in %s on %s, quantization %s",
            location.name,
            dtype,
            device,
            quantization,
        )

    def _release(self, key: _Key) -> None:
        with self._lock:
            copy = self._copies[key]
            copy.num_leases -= 1
            if copy.num_leases > 0:
                return
            del self._copies[key]
        if key[2].type == "cuda":
            torch.cuda.empty_cache()
        log.info("freed base model %s", key[0].name)
