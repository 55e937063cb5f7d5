"""``act(gate) * up`` of feed-forward parts by one call of a kernel, ``kernels/gates.c``.

A part keeps its place, its class and its layers, so that adapters find what they change; only its
``forward`` is replaced, by one that goes the part's own way wherever the kernel does not fit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.inference.kernels.library import can_read, kernel
from luthier.inference.rowwise.rms_norms import threads_for

_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = 1e-5


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x, approximate="tanh")


#: In the order of the kernel's numbers for them.
_ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (nn.functional.silu, _gelu)


def quicken_gates(model: nn.Module) -> None:
    """Let gated feed-forward parts multiply by the kernel from now on.

    They are known by the layers that they are made of and by what they give: one of each sort is
    tried.

    Args:
        model: A network of its own, whose tensors may be shared: they stay as they are. Nothing
            happens off the CPU, in other precisions, or where there are no kernels.
    """
    if _kernel() is None:
        return
    tried: dict[tuple[type, int], bool] = {}
    for part in model.modules():
        mlp = _mlp_like(part)
        if mlp is None:
            continue
        sort = (type(part), mlp.activation)
        if sort not in tried:
            tried[sort] = mlp.gives_the_same()
        if tried[sort]:
            vars(part)["forward"] = mlp


class _KernelMlp:
    """The forward of a feed-forward part.

    Args:
        part: Whose.
        activation: A place in ``_ACTIVATIONS``.
    """

    def __init__(self, part: Any, activation: int) -> None:
        # No circle: networks are freed when they are let go.
        self._part: Callable[[], Any] = weakref.ref(part)
        self.activation = activation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the part gives for [..., D], rounded in another order."""
        part, multiply = self._part(), _kernel()
        x = args[0] if len(args) == 1 and not kwargs else None
        if multiply is None or type(x) is not torch.Tensor or x.dtype != torch.float32:
            return type(part).forward(part, *args, **kwargs)
        gate, up = part.gate_proj(x), part.up_proj(x)
        if not (can_read(gate, up) and gate.shape == up.shape and gate is not x):
            return part.down_proj(part.act_fn(gate) * up)
        # A product of the step's own: nobody else sees what is written over it.
        multiply(
            gate.data_ptr(), up.data_ptr(), gate.numel(), self.activation, threads_for(gate.numel())
        )
        return part.down_proj(gate)

    @torch.inference_mode()
    def gives_the_same(self) -> bool:
        """Whether that is what the part gives itself."""
        part: Any = self._part()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, part.gate_proj.in_features, generator=generator)
        try:
            expected = type(part).forward(part, x)
        except (RuntimeError, TypeError, ValueError):
            return False  # it wants something else than rows
        given = self(x)
        limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
        return torch.allclose(given, expected, rtol=0, atol=limit)


def _kernel() -> Callable[..., None] | None:
    return kernel("gates", "pp l i i")


def _mlp_like(part: nn.Module) -> _KernelMlp | None:
    """The kernel's way of what a part may do; None if it is made of something else."""
    layers: dict[str, Any] = dict(part.named_children())
    if set(layers) != _PARTS or next(part.parameters(recurse=False), None) is not None:
        return None
    products = [layers[name] for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(each, nn.Linear) and _is_float(each.weight) for each in products):
        return None
    x = torch.linspace(-10, 10, 201)
    with torch.inference_mode():
        for number, activation in enumerate(_ACTIVATIONS):
            if torch.allclose(layers["act_fn"](x), activation(x), rtol=_TOLERANCE, atol=1e-6):
                return _KernelMlp(part, number)
    return None


def _is_float(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.is_cpu
