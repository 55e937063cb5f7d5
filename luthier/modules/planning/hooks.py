"""How whoever starts a training watches and stops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data_model.options.limits import UNLIMITED, TrainingLimits
from luthier.modules.environment import Environment
from luthier.training.callbacks.base import TrainingCallback

#: Arguments of ``train`` that no wire has: caikit leaves ``**kwargs`` out of the messages.
HOOK_NAMES = ("callbacks", "should_stop", "from_request", "run_folder", "resume_from")


@dataclass(frozen=True)
class TrainingHooks:
    """How a runtime watches and stops a training.

    Args:
        callbacks: Told what happens.
        should_stop: Asked between batches; True ends the training with ``CancelledError``.
        from_request: True if somebody else chose names, files and numbers: they are then confined
            to what the operator allows.
        run_folder: Gets checkpoints and predictions; None keeps neither.
        resume_from: A checkpoint, or a folder whose newest one the training goes on from.
    """

    callbacks: tuple[TrainingCallback, ...] = ()
    should_stop: Callable[[], bool] = bool
    from_request: bool = False
    run_folder: Path | None = None
    resume_from: Path | None = None


def limits_for(hooks: TrainingHooks, environment: Environment) -> TrainingLimits:
    """The server's limits for a request; a Python caller uses their own machine.

    Args:
        hooks: Say whose training it is.
        environment: Has the limits.

    Returns:
        The limits that hold.
    """
    return environment.training_limits if hooks.from_request else UNLIMITED


def given_hooks(arguments: Mapping[str, Any]) -> TrainingHooks:
    """The hooks among the arguments of ``train``."""
    given = {name: arguments[name] for name in HOOK_NAMES if arguments.get(name) is not None}
    return TrainingHooks(**{**given, "callbacks": tuple(given.get("callbacks", ()))})
