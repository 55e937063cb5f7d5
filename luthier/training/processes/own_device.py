"""Which device a process of a training computes on."""

from __future__ import annotations

import torch

from luthier.errors import InvalidInputError
from luthier.resources.hardware import parse_device
from luthier.training.processes.parallel import current_group


def own_device(word: str | None, *, default: str) -> torch.device:
    """Where this process trains: of several processes, each has a GPU of its own.

    Args:
        word: What the training asks for; None takes the default.
        default: Of this machine.

    Returns:
        The device.

    Raises:
        InvalidInputError: If this machine has no such device, or all processes are sent to one.
    """
    device = parse_device(word or default)
    group = current_group()
    if group.is_alone or device.type == "cpu":
        return device
    if word is not None and ":" in word:
        raise InvalidInputError(
            f"'device' {word!r} is one GPU, and there are {group.num_processes} processes; write "
            "'cuda'"
        )
    return group.device


def require_gpus(num_processes: int, device: torch.device) -> None:
    """Refuse more processes than there are GPUs to train on; a CPU takes any number.

    Args:
        num_processes: Of one training.
        device: Where it trains.

    Raises:
        InvalidInputError: Naming both numbers.
    """
    if device.type != "cpu" and num_processes > torch.cuda.device_count():
        raise InvalidInputError(
            f"'num_processes' is {num_processes}, but this machine has "
            f"{torch.cuda.device_count()} GPUs"
        )


def require_processes(num_processes: int) -> None:
    """Refuse a training that wants processes which nobody started.

    Args:
        num_processes: That the training asks for; 1 takes any number.

    Raises:
        InvalidInputError: Naming both numbers.
    """
    started = current_group().num_processes
    if num_processes not in (1, started):
        raise InvalidInputError(
            f"'num_processes' is {num_processes}, but this training has {started}; jobs, "
            "'luthier train' and torchrun start several, a call from Python does not"
        )
