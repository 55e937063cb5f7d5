"""An adapter that lies on disk and is in memory only while somebody uses its tensors."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import NO_TOKENS, OwnTokens
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.storage import load_adapter
from luthier.adapters.token_rows import TokenRows
from luthier.errors import ArtifactError, LuthierError, ReplacedError

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel


class StoredAdapter(Adapter):
    """Gives what the adapter in a folder gives; costs next to nothing while nobody asks.

    Whoever gets tensors from it keeps them in memory by holding them. Thread-safe.

    Args:
        adapter: Already read from ``folder``; not kept alive. Of a classification head's folder,
            what is tuned below the head.
        folder: PEFT's; it must stay as it is as long as this object is used.
        base_model: What the adapter was read for; not kept alive.
    """

    method = "stored"
    _kept: Callable[[], Adapter | None]

    def __init__(self, adapter: Adapter, folder: Path, *, base_model: BaseModel) -> None:
        self._place(
            folder,
            base_model,
            adapter.content_hash(),
            adapter.delta_layers(),
            adapter.whole_layers(),
            adapter.own_tokens(),
        )
        self._kept = weakref.ref(adapter)

    @classmethod
    def unread(
        cls,
        folder: Path,
        *,
        base_model: BaseModel,
        content_hash: str,
        delta_layers: frozenset[str],
        whole_layers: frozenset[str] = frozenset(),
        own_tokens: OwnTokens | None = None,
    ) -> Self:
        """An adapter that somebody else has read, another process perhaps.

        Args:
            folder: PEFT's; it must stay as it is as long as this object is used.
            base_model: What the adapter is for; not kept alive.
            content_hash: Of the adapter; another one in its place is refused.
            delta_layers: Of the adapter.
            whole_layers: Of the adapter.
            own_tokens: Of the adapter; some kilobytes, which stay in memory.

        Returns:
            The adapter, read when somebody asks for its tensors.
        """
        stored = cls.__new__(cls)
        stored._place(folder, base_model, content_hash, delta_layers, whole_layers, own_tokens)
        return stored

    def _place(
        self,
        folder: Path,
        base_model: BaseModel,
        content_hash: str,
        delta_layers: frozenset[str],
        whole_layers: frozenset[str],
        own_tokens: OwnTokens | None,
    ) -> None:
        self.folder = folder
        self._base_model = weakref.ref(base_model)
        self._hash = content_hash
        self._delta_layers = delta_layers
        self._whole_layers = whole_layers
        self._own_tokens = None if own_tokens is None else own_tokens.kept()
        self._kept = _nothing
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """Its folder and the one around it, whose name is a served model's id."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def loaded(self) -> Adapter:
        """The adapter itself, read again if nobody kept it.

        Returns:
            The same object as long as somebody holds it.

        Raises:
            ReplacedError: If the folder is gone, damaged, or holds another adapter by now.
            ArtifactError: If the base model was released.
        """
        with self._lock:
            adapter = self._kept()
            if adapter is None:
                adapter = self._read()
                self._kept = weakref.ref(adapter)
            return adapter

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        """The adapter's."""
        return self.loaded().linear_deltas()

    def whole_modules(self) -> Mapping[str, nn.Module]:
        """The adapter's."""
        return self.loaded().whole_modules()

    def replaced_rows(self) -> TokenRows | None:
        """The adapter's."""
        return self.loaded().replaced_rows()

    def delta_layers(self) -> frozenset[str]:
        """Known without the tensors."""
        return self._delta_layers

    def whole_layers(self) -> frozenset[str]:
        """Known without the tensors."""
        return self._whole_layers

    def added_tokens(self) -> Mapping[str, int]:
        """Known without the tensors."""
        return NO_TOKENS if self._own_tokens is None else self._own_tokens.ids

    def own_tokens(self) -> OwnTokens | None:
        """Kept in memory: they are few."""
        return self._own_tokens

    def content_hash(self) -> str:
        """Known without the tensors: what is read later must have this one."""
        return self._hash

    def snapshot(self) -> Self:
        """Itself: what is on disk is known by its hash, and another adapter there is refused."""
        return self

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's."""
        return self.loaded().named_parameters()

    def soft_prompt(self) -> SoftPromptTensors:
        """The adapter's."""
        return self.loaded().soft_prompt()

    def prefix_key_values(self) -> torch.Tensor | None:
        """The adapter's."""
        return self.loaded().prefix_key_values()

    def peft_config(self) -> dict[str, Any]:
        """The adapter's."""
        return self.loaded().peft_config()

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """The adapter's."""
        return self.loaded().peft_state()

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """The adapter's copy; it stays in memory as long as it is held."""
        return cast(Self, self.loaded().to(device=device, dtype=dtype))

    def tuned_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The adapter's network."""
        return self.loaded().tuned_model(model)

    def _read(self) -> Adapter:
        base_model = self._base_model()
        if base_model is None:
            raise ArtifactError(f"the base model of adapter {self.folder.name!r} was released")
        try:
            adapter = _below_head(load_adapter(self.folder, base_model=base_model))
        except (LuthierError, OSError) as error:
            # It could be read before, so somebody has changed it, or is about to.
            raise ReplacedError(
                f"adapter {self.folder.name!r} can no longer be read: {error}"
            ) from error
        if adapter.content_hash() != self._hash:
            raise ReplacedError(f"adapter {self.folder.name!r} was replaced by another one")
        return adapter


def _below_head(adapter: Adapter) -> Adapter:
    """The part of an adapter that changes what the base model computes."""
    if isinstance(adapter, ClassificationHead) and adapter.body is not None:
        return adapter.body
    return adapter


def _nothing() -> None:
    """What is left of an adapter that nobody keeps."""
