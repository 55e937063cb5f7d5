"""The optimizer, and its state as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ArtifactError, NotSupportedError
from luthier.training.processes.sharding import share_like

#: H2O LLM Studio's; torch has 0.99.
_RMSPROP_SMOOTHING = 0.9
#: What a number in the optimizer's state is called in a file: it comes back as a number.
_NUMBER_SUFFIX = "#"


def _one(name: str) -> float:
    return 1.0


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    options: TrainingOptions,
    *,
    learning_rate_factor: Callable[[str], float] = _one,
) -> torch.optim.Optimizer:
    """The optimizer that the options name; norms and biases (one dimension) do not decay.

    Args:
        named_parameters: What is learned.
        options: Optimizer, learning rates, betas, epsilon, momentum and weight decay.
        learning_rate_factor: Parameter name to what its learning rate is multiplied with.

    Returns:
        An optimizer without state. Its learning rate is set before each update.

    Raises:
        NotSupportedError: For ``adamw_8bit`` without bitsandbytes or a GPU.

    Source:
        AdamW: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        key = (parameter.ndim >= 2, learning_rate_factor(name) * _layer_factor(name, options))
        groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if decays else 0.0,
            "lr_factor": factor,
        }
        for (decays, factor), parameters in groups.items()
    ]
    return _MAKERS[options.optimizer](settings, options)


def _layer_factor(name: str, options: TrainingOptions) -> float:
    """What makes the common learning rate that of a layer with a rate of its own."""
    if any(part in name for part in options.differential_learning_rate_layers):
        return options.differential_learning_rate / options.learning_rate
    return 1.0


def _adam(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True, **_adam_settings(options))


def _adamw(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **_adam_settings(options))


def _adam_settings(options: TrainingOptions) -> dict[str, Any]:
    return {
        "lr": options.learning_rate,
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
    }


def _adadelta(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(groups, lr=options.learning_rate, eps=options.adam_epsilon)


def _rmsprop(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups,
        lr=options.learning_rate,
        alpha=_RMSPROP_SMOOTHING,
        eps=options.adam_epsilon,
        momentum=options.momentum,
    )


def _sgd(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.momentum > 0
    )


def _adamw_8bit(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    if any(not parameter.is_cuda for group in groups for parameter in group["params"]):
        raise NotSupportedError("'optimizer' adamw_8bit needs a GPU; adamw does the same on a CPU")
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise NotSupportedError(
            "'optimizer' adamw_8bit needs the package bitsandbytes, which is not installed"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **_adam_settings(options))
    return optimizer


_MAKERS: Mapping[str, Callable[[list[dict[str, Any]], TrainingOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "adadelta": _adadelta,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
    "adamw_8bit": _adamw_8bit,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use ``learning_rate``, times each group's factor, from the next ``optimizer.step()`` on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's own tensors by ``<parameter>::<key>``; not copied.

    Numbers are among them, as tensors; learning rates and other settings are not: they come from
    the options.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in named_parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{name}::{key}"] = value
            elif isinstance(value, int | float):
                found[f"{name}::{key}{_NUMBER_SUFFIX}"] = torch.tensor(value)
    return found


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
        if name not in named_parameters:
            raise ArtifactError(f"the optimizer's {entry[:200]!r} is of nothing that is learned")
        parameter = named_parameters[name]
        if key.endswith(_NUMBER_SUFFIX):
            optimizer.state[parameter][key.removesuffix(_NUMBER_SUFFIX)] = tensor.item()
            continue
        # torch keeps a step that is counted on the CPU, unless the optimizer is a fused one.
        stays = tensor.ndim == 0 and not optimizer.defaults.get("fused")
        optimizer.state[parameter][key] = (
            tensor if stays else share_like(tensor.to(parameter.device), parameter)
        )
