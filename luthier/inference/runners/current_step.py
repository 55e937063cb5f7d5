"""How a network's attention layers learn which step they are in.

Many models hand nothing on to their layers, and some take no argument that they do not know. So the
layers are told where to look, once, and the step is said there before each pass.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import nn

from luthier.errors import NotSupportedError

Step = TypeVar("Step")


class CurrentStep(Generic[Step]):
    """Which step a network is in.

    Args:
        network: One that nobody shares; its modules are told.
    """

    def __init__(self, network: nn.Module) -> None:
        self._step: Step | None = None
        module: Any
        for module in network.modules():
            module.current_step = self

    def set(self, step: Step) -> None:
        """Say what the next forward pass is."""
        self._step = step

    @staticmethod
    def of(module: Any) -> Any:
        """The step that a layer is in.

        Args:
            module: A module of a network.

        Returns:
            What was set last for its network.

        Raises:
            NotSupportedError: If nothing was.
        """
        told = getattr(module, "current_step", None)
        step = told._step if isinstance(told, CurrentStep) else None
        if step is None:
            raise NotSupportedError(f"{type(module).__name__} is not told which rows it is given")
        return step
