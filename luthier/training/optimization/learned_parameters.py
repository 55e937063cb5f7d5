"""Which of an adapter's parameters are learned, what they were before, and the copies that the
optimizer changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from luthier.adapters.base import Adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ArtifactError, InvalidInputError
from luthier.training.processes.sharding import share_like

_HALF = (torch.bfloat16, torch.float16)
_MASTER_KEY = "::master"


def choose_learned(adapter: Adapter, options: TrainingOptions) -> dict[str, nn.Parameter]:
    """The parameters that ``freeze_layers`` leaves, by name.

    Args:
        adapter: What is tuned.
        options: ``freeze_layers`` and ``differential_learning_rate_layers`` count.

    Returns:
        At least one parameter.

    Raises:
        InvalidInputError: If nothing is left, or an entry of either list is in no name.
    """
    named = dict(adapter.named_parameters())
    for option in ("freeze_layers", "differential_learning_rate_layers"):
        for part in getattr(options, option):
            if not any(part in name for name in named):
                example = next(iter(named), "none")
                raise InvalidInputError(
                    f"'{option}' names {part[:80]!r}, which is in the name of no parameter that "
                    f"{adapter.method} learns; one is {example!r}"
                )
    learned = {
        name: parameter
        for name, parameter in named.items()
        if not any(part in name for part in options.freeze_layers)
    }
    if not learned:
        raise InvalidInputError(
            f"'freeze_layers' freezes all {len(named)} parameters, so there is nothing to learn"
        )
    return learned


@contextlib.contextmanager
def requiring_gradients(adapter: Adapter, learned: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Gradients for what is learned and for nothing else, for as long as this lasts."""
    before = [(parameter, parameter.requires_grad) for _, parameter in adapter.named_parameters()]
    chosen = {id(parameter) for parameter in learned.values()}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad_(required)


@torch.no_grad()
def put_back(
    tensors: Mapping[str, torch.Tensor], named_parameters: Mapping[str, nn.Parameter]
) -> None:
    """Copy tensors into the parameters of the same names.

    Args:
        tensors: One per parameter.
        named_parameters: Changed in place.

    Raises:
        ArtifactError: If names or shapes differ; then nothing is changed.
    """
    for name in sorted({*tensors, *named_parameters}):
        if name not in tensors or name not in named_parameters:
            raise ArtifactError(f"{name[:200]!r} is on one side only")
        saved, parameter = tensors[name], named_parameters[name]
        if saved.shape != parameter.shape or saved.dtype != parameter.dtype:
            raise ArtifactError(f"{name[:200]!r} has another shape or dtype")
    for name, parameter in named_parameters.items():
        saved = tensors[name]
        # Of what is shared out, each process kept its own share.
        parameter.copy_(saved if isinstance(saved, DTensor) else share_like(saved, parameter))


class MasterWeights:
    """Copies in fp32 of what is learned in half precision.

    A number in bf16 has 8 bits: an update smaller than 1/256 of a weight changes nothing, however
    often it comes. So the optimizer changes the copies, and the model gets them rounded.

    Args:
        learned: By name. Parameters in fp32 or fp64 are their own masters and cost nothing.
    """

    def __init__(self, learned: Mapping[str, nn.Parameter]) -> None:
        self._learned = dict(learned)
        #: What an optimizer is given, by the same names.
        self.named = {
            name: nn.Parameter(parameter.detach().float())
            if parameter.dtype in _HALF
            else parameter
            for name, parameter in learned.items()
        }
        self._copies = [
            (self._learned[name], master)
            for name, master in self.named.items()
            if master is not self._learned[name]
        ]

    def take_gradients(self) -> None:
        """Move the model's gradients to the copies, in fp32."""
        for parameter, master in self._copies:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        """Round the copies into the model."""
        for parameter, master in self._copies:
            parameter.copy_(master)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The copies by ``<parameter>::master``, for a checkpoint; not copied again."""
        return {
            name + _MASTER_KEY: master
            for name, master in self.named.items()
            if master is not self._learned[name]
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put back what ``tensors`` gave.

        Args:
            tensors: May hold others.

        Returns:
            The others.

        Raises:
            ArtifactError: If a copy is missing or has another shape.
        """
        for name, master in self.tensors().items():
            saved = tensors.get(name)
            if saved is None or saved.shape != master.shape:
                raise ArtifactError(f"{name[:200]!r} is missing or has another shape")
            master.copy_(share_like(saved, master))
        return {key: value for key, value in tensors.items() if not key.endswith(_MASTER_KEY)}
