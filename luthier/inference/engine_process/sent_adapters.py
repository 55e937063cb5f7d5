"""Adapters and heads on their way to an engine's process, and what it has of them.

An adapter that lies in a folder goes over as the folder's name; virtual tokens and prefixes go as
tensors; any other is written into a folder for the process, in PEFT's format.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from luthier.adapters.added_tokens import OwnTokens
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.errors import NotSupportedError
from luthier.inference.engine_process.messages import Message, pack_tensors, unpack_tensors
from luthier.resources.base_model import BaseModel

#: What is known of a thing beside its tensors, in bytes; about that much.
_BYTES_BESIDE = 4096


class SentThings:
    """What the process holds for requests to come: the same here as there, because all that changes
    it is said in order.

    Args:
        max_bytes: Beyond it, those that no request has named for the longest time are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._num_bytes = 0

    def holds(self, key: str) -> bool:
        """Whether the process has it; it counts as used now."""
        if key not in self._sizes:
            return False
        self._sizes.move_to_end(key)
        return True

    def add(self, key: str, num_bytes: int) -> list[str]:
        """Count a new one.

        Args:
            key: The process does not have it.
            num_bytes: Of its tensors.

        Returns:
            Keys of those that must be dropped for it.
        """
        self._sizes[key] = num_bytes + _BYTES_BESIDE
        self._num_bytes += self._sizes[key]
        dropped: list[str] = []
        while self._num_bytes > self._max_bytes and len(self._sizes) > 1:
            oldest, size = self._sizes.popitem(last=False)
            self._num_bytes -= size
            dropped.append(oldest)
        return dropped

    def discard(self, key: str) -> bool:
        """Count one no longer; True if it was counted."""
        size = self._sizes.pop(key, None)
        self._num_bytes -= size or 0
        return size is not None


def key_of(adapter: Adapter, content_hash: str) -> str:
    """What the process knows an adapter by: its content, and the folder if it reads one."""
    if isinstance(adapter, StoredAdapter):
        return f"{content_hash} {adapter.folder}"
    return content_hash


def head_key(head: torch.Tensor) -> str:
    """What the process knows the head of a classification by: its content."""
    head = head.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{head.dtype} {list(head.shape)}".encode())
    digest.update(head.flatten().view(torch.uint8).numpy().data)
    return f"head {digest.hexdigest()}"


def num_bytes_of(adapter: Adapter) -> int:
    """Of what the process will hold in memory."""
    if isinstance(adapter, StoredAdapter):
        return 0
    return sum(parameter.nbytes for _, parameter in adapter.named_parameters())


def describe_adapter(key: str, adapter: Adapter, content_hash: str, folder: Path) -> Message:
    """Say what an adapter is.

    Args:
        key: Of ``key_of``.
        adapter: One that nobody changes.
        content_hash: Its own.
        folder: For adapters that must be written; exists.

    Returns:
        The message that makes the process have it.

    Raises:
        NotSupportedError: If it cannot be written, being no delta but a whole model.
    """
    if isinstance(adapter, StoredAdapter):
        about: dict[str, Any] = {
            "hash": content_hash,
            "layers": sorted(adapter.delta_layers()),
            "modules": sorted(adapter.whole_layers()),
        }
        own, tensors = adapter.own_tokens(), {}
        if own is not None:
            about["added"], tensors = dict(own.ids), {"own_tokens": own.rows}
        operation = ["adapter", key, {**about, "folder": str(adapter.folder)}]
        return Message([operation], [pack_tensors(tensors)] if tensors else [])
    replaces_layers = type(adapter).tuned_model is not Adapter.tuned_model
    if not replaces_layers and not adapter.delta_layers():
        return Message([["adapter", key, {"hash": content_hash}]], [_pack_prompt(adapter)])
    # A folder of its own each time: the process may still be reading, or removing, the last one.
    saved = folder / f"{content_hash[:16]}-{uuid.uuid4().hex}"
    save_adapter(adapter, saved, base_model_name="")
    return Message([["adapter", key, {"saved": str(saved)}]])


def receive_adapter(
    about: Mapping[str, Any], blobs: list[bytes], *, base_model: BaseModel
) -> Adapter:
    """The adapter that ``describe_adapter`` described.

    Args:
        about: The last part of its operation.
        blobs: Of its message.
        base_model: What it is for.

    Returns:
        An adapter that gives the same.

    Raises:
        LuthierError: As ``load_adapter`` says.
    """
    if "folder" in about:
        return StoredAdapter.unread(
            Path(about["folder"]),
            base_model=base_model,
            content_hash=about["hash"],
            delta_layers=frozenset(about["layers"]),
            whole_layers=frozenset(about["modules"]),
            own_tokens=_received_tokens(about.get("added"), blobs),
        )
    if "saved" in about:
        return load_adapter(Path(about["saved"]), base_model=base_model)
    return ReceivedPrompt(unpack_tensors(blobs[0]), about["hash"])


def _received_tokens(ids: Mapping[str, int] | None, blobs: list[bytes]) -> OwnTokens | None:
    return None if ids is None else OwnTokens(ids, unpack_tensors(blobs[0])["own_tokens"])


def _pack_prompt(adapter: Adapter) -> bytes:
    with torch.no_grad():
        prompt, key_values = adapter.soft_prompt(), adapter.prefix_key_values()
    parts = {"decoder": prompt.decoder, "encoder": prompt.encoder, "key_values": key_values}
    return pack_tensors({name: part for name, part in parts.items() if part is not None})


class ReceivedPrompt(Adapter):
    """What an engine needs of virtual tokens and prefixes; it can only be served.

    Args:
        tensors: ``decoder`` and ``encoder``: virtual tokens; ``key_values``: a prefix.
        content_hash: Of the adapter that they are of.
    """

    method = "received_prompt"

    def __init__(self, tensors: Mapping[str, torch.Tensor], content_hash: str) -> None:
        self._tensors = dict(tensors)
        self._content_hash = content_hash

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """None: nobody tunes it."""
        return iter(())

    def soft_prompt(self) -> SoftPromptTensors:
        """The virtual tokens that came."""
        return SoftPromptTensors(
            decoder=self._tensors.get("decoder"), encoder=self._tensors.get("encoder")
        )

    def prefix_key_values(self) -> torch.Tensor | None:
        """The prefix that came."""
        return self._tensors.get("key_values")

    def content_hash(self) -> str:
        """That of the adapter that was sent."""
        return self._content_hash

    def snapshot(self) -> Self:
        """Itself: nobody changes it."""
        return self

    def peft_config(self) -> dict[str, Any]:
        """Of no PEFT adapter.

        Returns:
            Nothing.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError("tensors received for serving cannot be saved as an adapter")

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """Of no PEFT adapter.

        Returns:
            Nothing.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError("tensors received for serving cannot be saved as an adapter")

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""
        tensors = self._tensors
        if all(each.device == device and each.dtype == dtype for each in tensors.values()):
            return self
        moved = {name: each.to(device=device, dtype=dtype) for name, each in tensors.items()}
        return type(self)(moved, self._content_hash)
