"""The optimizer and the learning rate's schedule, per update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from luthier.data_model.training_options import TrainingOptions
from luthier.errors import ArtifactError


def _one(name: str) -> float:
    return 1.0


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    options: TrainingOptions,
    *,
    learning_rate_factor: Callable[[str], float] = _one,
) -> torch.optim.AdamW:
    """AdamW over the given parameters; norms and biases (one dimension) do not decay.

    Args:
        named_parameters: What is learned.
        options: Learning rate, betas, epsilon and weight decay.
        learning_rate_factor: Parameter name to what its learning rate is multiplied with.

    Returns:
        An optimizer without state. Its learning rate is set before each update.

    Source:
        Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        key = (parameter.ndim >= 2, learning_rate_factor(name))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": options.weight_decay if decays else 0.0,
                "lr_factor": factor,
            }
            for (decays, factor), parameters in groups.items()
        ],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )


def learning_rate_at(update: int, *, num_updates: int, options: TrainingOptions) -> float:
    """The learning rate of one update.

    Args:
        update: From 0 to ``num_updates - 1``.
        num_updates: Of the whole training, all epochs.
        options: Peak, schedule and warm-up.

    Returns:
        The rate; during a warm-up it rises linearly from 0, afterwards it falls by the schedule.

    Source:
        The same values as transformers' ``get_scheduler`` stepped once per update.

    Example:
        >>> options = TrainingOptions(learning_rate=1.0, schedule="linear")
        >>> [learning_rate_at(update, num_updates=4, options=options) for update in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    num_warmup = num_warmup_updates(num_updates, options)
    if update < num_warmup:
        return options.learning_rate * update / num_warmup
    progress = (update - num_warmup) / max(1, num_updates - num_warmup)
    if options.schedule == "linear":
        return options.learning_rate * max(0.0, 1.0 - progress)
    if options.schedule == "cosine":
        return options.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return options.learning_rate


def num_warmup_updates(num_updates: int, options: TrainingOptions) -> int:
    """Updates of the warm-up: ``warmup_steps``, or the share ``warmup_ratio``, rounded up."""
    return options.warmup_steps or math.ceil(num_updates * options.warmup_ratio)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use ``learning_rate``, times each group's factor, from the next ``optimizer.step()`` on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's own tensors by ``<parameter>::<key>``; not copied.

    Learning rates and other settings are not among them: they come from the options.
    """
    return {
        f"{name}::{key}": value
        for name, parameter in named_parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Args:
        optimizer: Fresh, of the same options.
        named_parameters: Of the same names and shapes.
        tensors: Taken over, not copied, unless they change their device.

    Raises:
        ArtifactError: For a tensor that belongs to no parameter.
    """
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition("::")
        parameter = named_parameters.get(name)
        if parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
            raise ArtifactError(f"the optimizer's {entry[:80]!r} fits no learned tensor")
        is_on_device = tensor.ndim > 0 or optimizer.defaults.get("fused")
        optimizer.state[parameter][key] = tensor.to(parameter.device) if is_on_device else tensor
