"""Learns from one pass which layers of a network see every token just once.

Only there can an adapter do something to its own tokens: an expert, for one, sees some tokens in an
order of its own, and a layer that looks at its neighbours gives other numbers without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

#: Known to take each token by itself; what others do is measured.
_TOKENWISE = (nn.Linear, Conv1D, nn.Embedding, nn.LayerNorm, nn.RMSNorm)


class PassWatch:
    """What layers were called with while somebody watched.

    Args:
        layers: By path.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._inputs: dict[str, list[torch.Tensor | None]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the passes made meanwhile."""
        self._inputs = {path: [] for path in self._layers}
        hooks = [
            layer.register_forward_hook(self._remember(path), with_kwargs=True)
            for path, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def rows_seen(self, path: str, num_tokens: int) -> bool:
        """Whether a layer got [1, ``num_tokens``, D], once."""
        x = self._only_input(path)
        return x is not None and x.ndim == 3 and tuple(x.shape[:2]) == (1, num_tokens)

    def was_called(self, path: str) -> bool:
        """Whether a layer was called at all, each time with one tensor and nothing else."""
        inputs = self._inputs.get(path, [])
        return bool(inputs) and all(x is not None for x in inputs)

    def takes_each_token(self, path: str, num_tokens: int) -> bool:
        """Whether a layer got every token once, and gives each what it gives it alone.

        Args:
            path: The layer's.
            num_tokens: Of the pass, >= 2.

        Returns:
            False also where two sizes are alike, so that nobody can tell which is the tokens'.
        """
        x = self._only_input(path)
        if x is None or x.ndim < 2 or tuple(x.shape[:2]) != (1, num_tokens):
            return False
        if x.ndim > 3 and num_tokens in x.shape[2:-1]:
            return False
        layer = self._layers[path]
        return type(layer) in _TOKENWISE or _gives_parts(layer, x)

    def _only_input(self, path: str) -> torch.Tensor | None:
        inputs = self._inputs.get(path, [])
        return inputs[0] if len(inputs) == 1 else None

    def _remember(self, path: str) -> Callable[..., None]:
        def remember(
            _: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], __: Any
        ) -> None:
            is_plain = len(given) == 1 and not named and isinstance(given[0], torch.Tensor)
            self._inputs[path].append(given[0] if is_plain else None)

        return remember


@torch.no_grad()
def _gives_parts(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer gives for some of the tokens what it gives for them among all."""
    output = layer(x)
    if not isinstance(output, torch.Tensor) or output.shape[:2] != x.shape[:2]:
        return False
    part = layer(x[:, 1:])
    if not isinstance(part, torch.Tensor) or part.shape[1:] != output[:, 1:].shape[1:]:
        return False
    error = (part - output[:, 1:]).abs().max()
    limit = output.abs().max() * max(1e-3, 16 * torch.finfo(output.dtype).eps)
    return bool(error <= limit)
