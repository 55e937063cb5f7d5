"""The contract of an adapter: the tuned delta that a frozen base model gets.

One file per tuning method implements it. Training changes ``named_parameters`` and runs
``tuned_model`` on ``model_inputs.prepare_inputs``; an engine reads ``soft_prompt``; storage writes
and reads PEFT folders. Neither list of methods is known here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import NO_TOKENS, OwnTokens
from luthier.adapters.checksums import checksums_of
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.start_probe import AnyProbe
from luthier.adapters.token_rows import TokenRows


@dataclass(frozen=True)
class SoftPromptTensors:
    """Virtual tokens, ready to be put before embeddings.

    Args:
        decoder: [P, D] before a causal model's input, or a seq2seq decoder's; None for none.
        encoder: [P, D] before a seq2seq encoder's input; None for none.
    """

    decoder: torch.Tensor | None = None
    encoder: torch.Tensor | None = None


class Adapter(ABC):
    """A tuned delta on a frozen base model.

    An adapter owns its tensors and never changes the base model's in place, so any number of them
    share one base. ``content_hash`` changes whenever a tensor does: caches key on it.
    """

    #: The tuning method's word: ``prompt_tuning``, ``multitask_prompt_tuning``, ``lora`` …
    method: ClassVar[str]
    _hashed: tuple[object, str] | None = None

    @property
    def label(self) -> str:
        """What messages call it: its method, unless it has a name."""
        return self.method

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training may change, by stable name. The base model's own are never among them,
        unless the method is full fine-tuning."""

    @abstractmethod
    def soft_prompt(self) -> SoftPromptTensors:
        """The virtual tokens this adapter puts before the input, differentiable in its
        parameters; empty for methods that have none."""

    def prefix_key_values(self) -> torch.Tensor | None:
        """Keys and values that this adapter puts before those of each layer of the stack that makes
        logits, [2·L, K, P, Dh]: layer 0's keys, its values, layer 1's keys and so on;
        differentiable in its parameters. None for methods that have none."""
        return None

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        """Low-rank deltas beside linear layers, by path, if they, ``whole_modules``,
        ``replaced_rows`` and ``own_tokens`` are all that ``tuned_model`` does to the base; else
        none."""
        return {}

    def whole_modules(self) -> Mapping[str, nn.Module]:
        """Layers of its own in the place of the base's, by path, if they, ``linear_deltas`` and
        ``replaced_rows`` are all that ``tuned_model`` does to the base; else none. Some may share a
        tensor."""
        return {}

    def replaced_rows(self) -> TokenRows | None:
        """Embeddings of its own in the place of those of some of the base's tokens, if nothing
        else but ``linear_deltas`` and ``whole_modules`` is done to the base; else none."""
        return None

    def added_tokens(self) -> Mapping[str, int]:
        """Text and id of each token that this adapter adds to the tokenizer's vocabulary, told
        without reading any tensor."""
        return NO_TOKENS

    def own_tokens(self) -> OwnTokens | None:
        """Tokens that a prompt may have beside the base's, with their embeddings; told without
        reading any file. None for most adapters."""
        return None

    def delta_layers(self) -> frozenset[str]:
        """Paths of the layers in ``linear_deltas``, told without reading any tensor."""
        return frozenset(self.linear_deltas())

    def whole_layers(self) -> frozenset[str]:
        """Paths of the layers in ``whole_modules`` and of those that have ``replaced_rows``, told
        without reading any tensor."""
        return frozenset(self.whole_modules())

    def loaded(self) -> Adapter:
        """The adapter with its tensors in memory, where they stay while somebody holds it."""
        return self

    def start_probe(self) -> AnyProbe | None:
        """What has to look at the first batches of the training before the first update, and then
        gives this adapter its first numbers. None once it has them, and for most starts."""
        return None

    def start_settings(self) -> dict[str, Any]:
        """What a start that looks at data was asked for, JSON values: part of what a training is.
        Empty for all others."""
        return {}

    def served(self) -> Self:
        """The adapter without what only training needs; it gives the same and has the same hash."""
        return self

    def snapshot(self) -> Self:
        """The adapter as it is now, for a request: nothing that is done to this one changes it.

        Returns:
            A copy of what ``served`` gives; self if copying would be absurd, or nothing can change.
        """
        served = self.served()
        return copy.deepcopy(served) if served is self else served

    def changes(self) -> object:
        """Something that differs after a change that reaches a ``snapshot``; None if none can."""
        return None

    @property
    def class_labels(self) -> tuple[str, ...]:
        """Names of the classes that the adapter tells apart, for one that writes no text."""
        return ()

    @abstractmethod
    def peft_config(self) -> dict[str, Any]:
        """``adapter_config.json`` as PEFT writes it, without any local path."""

    @abstractmethod
    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """``adapter_model.safetensors`` as PEFT writes it: names and detached tensors."""

    @abstractmethod
    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random numbers."""
        return False

    def learning_rate_factor(self, name: str) -> float:
        """What training multiplies the learning rate of the parameter ``name`` with."""
        return 1.0

    def tuned_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The network to run for this adapter: ``model``, the base's own, unless the method
        replaces it. Changes nothing."""
        return model

    def content_hash(self) -> str:
        """Hex SHA-256 over the method, its settings and its tensors.

        Each request asks for it, so it is kept until a tensor or setting changes.
        """
        settings = json.dumps(self._settings())
        state = (settings, *checksums_of(self._changing_tensors()))
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, self._digest(settings))
        return self._hashed[1]

    def _digest(self, settings: str) -> str:
        digest = hashlib.sha256(f"{self.method} {settings}".encode())
        for name, tensor in sorted(self._hashed_tensors(), key=lambda item: item[0]):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _changing_tensors(self) -> Iterable[torch.Tensor]:
        """What ``_hashed_tensors`` are made of."""
        return [tensor for _, tensor in self._hashed_tensors()]

    def _hashed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that has a say in what the model gives, by name."""
        yield from self.named_parameters()

    def _settings(self) -> list[object]:
        """What beside the parameters tells two adapters of one method apart; JSON values."""
        return []
