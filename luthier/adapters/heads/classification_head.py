"""A classification head: a linear layer from a causal model's last hidden state to classes.

It stands in the place of the output layer, over the bare base or over a tuned LoRA. The base model
is never touched: ``tuned_model`` is a network of its own around the base's tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.heads.peft_format import HEAD_NAME, write_config
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.peft_format import TENSOR_PREFIX
from luthier.adapters.module_tree import own_module_tree
from luthier.data_model.checks import require_unicode
from luthier.errors import InvalidInputError, NotSupportedError

_WEIGHT_NAME = f"{HEAD_NAME}.weight"


class ScoreLayer(nn.Module):
    """Hidden states to one score per class, in the head's own precision.

    Args:
        weight: [N, D].

    Shape:
        forward: [.., D] -> [.., N].
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The scores."""
        return functional.linear(hidden.to(self.weight.dtype), self.weight)


class ClassificationHead(Adapter):
    """The head of one tuning, with the LoRA that was tuned below it.

    Made by ``building.create_head`` and ``building.read_head``.

    Args:
        labels: Name of each class, [N].
        score: Weight of the head, [N, D].
        body: What is tuned of the base model; None leaves all of it as it is.
    """

    method: ClassVar[str] = "classification_head"

    def __init__(
        self, *, labels: Sequence[str], score: nn.Parameter, body: LoraAdapter | None = None
    ) -> None:
        self._labels = tuple(labels)
        self.score = score
        self.body = body
        self._trees: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()

    @property
    def class_labels(self) -> tuple[str, ...]:
        """Name of each class."""
        return self._labels

    def renamed(self, labels: Sequence[str]) -> Self:
        """The same head, sharing its tensors, with other names for its classes.

        Args:
            labels: As many as there are classes, each once.

        Returns:
            The head.

        Raises:
            InvalidInputError: If they are too few, too many or not different.
        """
        require_labels(labels)
        if len(labels) != len(self.score):
            raise InvalidInputError(
                f"the head has {len(self.score)} classes, got {len(labels)} labels"
            )
        return type(self)(labels=labels, score=self.score, body=self.body)

    @property
    def has_dropout(self) -> bool:
        """Whether the LoRA has."""
        return self.body is not None and self.body.has_dropout

    def learning_rate_factor(self, name: str) -> float:
        """The LoRA's own for its parameters.

        Args:
            name: As ``named_parameters`` gives it.

        Returns:
            1 for the head.
        """
        if self.body is None or name == _WEIGHT_NAME:
            return 1.0
        return self.body.learning_rate_factor(name)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the LoRA, then ``score.weight``."""
        if self.body is not None:
            yield from self.body.named_parameters()
        yield _WEIGHT_NAME, self.score

    def soft_prompt(self) -> SoftPromptTensors:
        """None: the input stays as it is."""
        return SoftPromptTensors()

    def snapshot(self) -> Self:
        """A copy of head and LoRA."""
        body = None if self.body is None else self.body.snapshot()
        score = nn.Parameter(self.score.detach().clone(), requires_grad=False)
        return type(self)(labels=self._labels, score=score, body=body)

    def tuned_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The base's (tuned) network with the head for an output layer: its logits are scores.

        Args:
            model: The base's network; not changed.

        Returns:
            The same object at every call.
        """
        tree = self._trees.get(model)
        if tree is None:
            tuned = model if self.body is None else self.body.tuned_model(model)
            tree = own_module_tree(tuned)
            tree.set_submodule(output_layer_name(tree), ScoreLayer(self.score))
            self._trees[model] = tree
        return tree

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``LoraConfig`` for a sequence classifier."""
        return write_config(None if self.body is None else self.body.peft_config())

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """The LoRA's, and ``base_model.model.score.weight``."""
        state = {} if self.body is None else dict(self.body.peft_state())
        return {**state, TENSOR_PREFIX + _WEIGHT_NAME: self.score.detach()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""
        body = None if self.body is None else self.body.to(device=device, dtype=dtype)
        if body is self.body and self.score.device == device and self.score.dtype == dtype:
            return self
        score = nn.Parameter(self.score.detach().to(device=device, dtype=dtype, copy=True))
        return type(self)(labels=self._labels, score=score, body=body)

    def _hashed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.peft_state().items()

    def _settings(self) -> list[object]:
        return [self.peft_config(), list(self._labels)]


def output_layer_name(model: PreTrainedModel) -> str:
    """Path of the layer that makes a model's logits.

    Args:
        model: A causal network.

    Returns:
        The path.

    Raises:
        NotSupportedError: If the model makes its logits by other means.
    """
    layer = model.get_output_embeddings()
    name: str | None = next((name for name, each in model.named_modules() if each is layer), None)
    if layer is None or name is None:
        raise NotSupportedError(
            f"a base model of type {model.config.model_type!r} has no output layer that a head "
            "could replace"
        )
    return name


def require_labels(labels: Sequence[str]) -> None:
    """Refuse names of classes that nobody could tell apart.

    Args:
        labels: Name of each class.

    Raises:
        InvalidInputError: If there are fewer than two, one is empty or no valid text, or stands
            twice.
    """
    if len(labels) < 2:
        raise InvalidInputError(f"a classification needs 2 labels or more, got {len(labels)}")
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str) or not label.strip():
            raise InvalidInputError(f"label {number} must be a name, got {label!r:.80}")
        require_unicode(f"label {number}", label)
        if label in labels[: number - 1]:
            raise InvalidInputError(f"label {label[:80]!r} stands twice")
