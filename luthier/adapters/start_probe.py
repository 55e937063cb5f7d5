"""The contract of an adapter that begins from data: it looks at some batches before the first
update, and takes its first numbers from what it saw.

Training runs the batches through the bare base model and shows what layers read
(``InputProbe``), or how the loss changes with what they write as well (``GradientProbe``), row by
row; what is made of that is the adapter's own business::

    for each batch:  for each row:  see_inputs, or see_gradients, per layer …
                     end_batch()
    begin()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch


class StartProbe(ABC):
    """What the two kinds of probe have in common: they look at the first batches of one training.

    Good for one adapter and one start. Everything that is shown is a tensor without a graph; a
    probe copies what it keeps.
    """

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Batches to be shown; fewer are shown where an epoch has no more."""

    @property
    @abstractmethod
    def paths(self) -> Sequence[str]:
        """The layers whose inputs, or gradients, are to be shown."""

    @abstractmethod
    def end_batch(self) -> None:
        """All rows of a batch were shown."""

    @abstractmethod
    def begin(self) -> None:
        """Give the adapter its first numbers, and all that depends on them; the batches are over.

        Raises:
            TrainingDataError: If what was shown does not suffice.
        """

    @abstractmethod
    def resume(self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Begin as an earlier part of the same training did, without looking at anything.

        Args:
            config: ``adapter_config.json`` of a checkpoint of it.
            state: ``adapter_model.safetensors`` there.

        Raises:
            ArtifactError: If they are not of such a training.
        """

    @abstractmethod
    def start_tensors(self) -> Sequence[torch.Tensor]:
        """What never changes after the start and yet counts, after ``begin``: the processes of one
        training must have the same."""


class InputProbe(StartProbe):
    """Looks at what layers read."""

    @abstractmethod
    def see_inputs(self, path: str, inputs: torch.Tensor, is_label: torch.Tensor | None) -> None:
        """What a layer reads in one row; keeps a statistic.

        Args:
            path: Of the layer.
            inputs: One per token that is no padding, [N, in]. Layers that read the same tensor are
                shown the same object.
            is_label: Whether the token is learned, bool [N]; None where that cannot be said.
        """


class GradientProbe(StartProbe):
    """Looks at what layers read, and at the gradients of what they write."""

    @abstractmethod
    def see_gradients(self, path: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """One row; keeps a statistic.

        Args:
            path: Of the layer.
            inputs: What it reads, [N, in].
            gradients: How the batch's mean loss changes with what it writes, [N, out].
        """


#: Either kind. Who shows the batches goes by it.
AnyProbe: TypeAlias = InputProbe | GradientProbe
