"""Layers of adapters' own, in the place of the base's for the tokens of their rows.

```
    tokens of a pass     A A A B C C . . . . . .      of adapters A, B, C; the rest is everybody's
    a norm               [ A ][  base's        ]      A has one of its own
    the output layer     [ A ]B[ base's        ]      A and B have
```
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.adapters.token_rows import TokenRows, TokenRowsLayer
from luthier.inference.linear.few_tokens import quicken_few_tokens


class WholeModules:
    """What adapters have in the place of layers, by the adapter's key.

    One thread writes at a time; another may read meanwhile.

    Args:
        layers: Those of the network whose place may be taken, by path.
        dtype: Of the network.
        device: Of the network.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers = dict(layers)
        self._dtype, self._device = dtype, device
        self._by_key: dict[str, Mapping[str, nn.Module]] = {}

    def takes(self, paths: frozenset[str]) -> bool:
        """Whether the places of all these layers may be taken."""
        return paths <= self._layers.keys()

    def base(self, path: str) -> nn.Module:
        """The network's layer whose place may be taken."""
        return self._layers[path]

    def base_bytes(self, paths: frozenset[str]) -> int:
        """What the base's own layers take in these places, each with tensors of its own."""
        return sum(self.num_bytes({path: self._layers[path]}) for path in paths)

    def num_bytes(self, modules: Mapping[str, nn.Module]) -> int:
        """What an adapter's layers take here; a tensor that some of them share counts once."""
        tensors = {id(each): each for layer in modules.values() for each in _tensors_of(layer)}
        return sum(
            each.numel() * (self._dtype.itemsize if each.is_floating_point() else each.itemsize)
            for each in tensors.values()
        )

    def has(self, key: str) -> bool:
        """Whether an adapter has any layer of its own."""
        return key in self._by_key

    def of(self, key: str) -> Mapping[str, nn.Module]:
        """An adapter's layers by path; none if it has none."""
        return self._by_key.get(key, {})

    def place(
        self,
        key: str,
        modules: Mapping[str, nn.Module],
        *,
        rows: TokenRows | None = None,
        made: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Store copies of an adapter's layers.

        Args:
            key: The adapter's.
            modules: By path; all of them ``takes`` accepts.
            rows: Of embeddings; a layer is made of them and the base's.
            made: Layers that are there already; not copied.
        """
        memo: dict[int, Any] = {}  # what is shared stays shared
        copies = nn.ModuleList([copy.deepcopy(layer, memo) for layer in modules.values()])
        copies.requires_grad_(False).eval()
        copies.to(device=self._device, dtype=self._dtype)
        quicken_few_tokens(copies)
        own: dict[str, nn.Module] = dict(zip(modules, copies, strict=True))
        if rows is not None:
            moved = rows.moved(self._move)
            own |= {path: TokenRowsLayer(self._layers[path], moved) for path in rows.paths}
        own |= made or {}
        if own:
            self._by_key[key] = own

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device=self._device, dtype=self._dtype, copy=True)

    def remove(self, key: str) -> None:
        """Forget an adapter's layers; no effect if it has none. No step may use it any more."""
        self._by_key.pop(key, None)


def _tensors_of(layer: nn.Module) -> Iterator[torch.Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()


@dataclass(frozen=True)
class OwnSpan:
    """Neighbouring tokens of a pass that go through a layer of their adapter's own.

    Args:
        start: First of them.
        stop: One past the last.
        layer: The adapter's.
    """

    start: int
    stop: int
    layer: nn.Module


@dataclass(frozen=True)
class WholeStep:
    """Which layer each token of a pass goes through in one place.

    Args:
        spans: In order, none of them empty; at least one.
        num_tokens: Of all of the pass.
    """

    spans: Sequence[OwnSpan]
    num_tokens: int

    def run(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """What the layers give.

        The base's layer runs once, from the first token that needs it to the last: to read its
        weight twice would cost more than the tokens in between, whose output is not used.

        Args:
            base: The layer of all tokens that are in no span.
            x: What the layers read, [1, N, ...].

        Returns:
            [1, N, ...].
        """
        first, last = self._others
        if first == last:
            parts = [each.layer(x[:, each.start : each.stop]) for each in self.spans]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        others = base(x[:, first:last])
        output = others
        if last - first < self.num_tokens:
            output = others.new_empty((1, self.num_tokens, *others.shape[2:]))
            output[:, first:last] = others
        for each in self.spans:
            output[:, each.start : each.stop] = each.layer(x[:, each.start : each.stop])
        return output

    @property
    def _others(self) -> tuple[int, int]:
        """From the first token in no span to behind the last; twice the same number for none."""
        first, last = 0, self.num_tokens
        for each in self.spans:
            if each.start > first:
                break
            first = each.stop
        for each in reversed(self.spans):
            if each.stop < last:
                break
            last = each.start
        return (first, last) if first < last else (0, 0)


@dataclass(frozen=True)
class LoneStep:
    """The layer of an adapter's own that all of a pass goes through in one place.

    Args:
        layer: The adapter's.
    """

    layer: nn.Module

    def run(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """What the layer gives.

        Args:
            base: Not used.
            x: What the layer reads, of any shape.

        Returns:
            Of the layer's shape.
        """
        output: torch.Tensor = self.layer(x)
        return output


class SpanLayer(nn.Module):
    """Stands in the place of a layer for the length of a pass.

    Args:
        parent: The module that the layer is a part of.
        name: The layer's, in it.

    Shape:
        forward: [1, N, ...] -> [1, N, ...], or whatever a layer of a lone row takes and gives.
    """

    def __init__(self, parent: nn.Module, name: str) -> None:
        super().__init__()
        self.base: nn.Module = parent.get_submodule(name)
        self.step: WholeStep | LoneStep | None = None
        self._place = (parent._modules, name)

    def __getattr__(self, name: str) -> Any:
        """Some models look at a layer's weight, and at other attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def enter(self, step: WholeStep | LoneStep) -> None:
        """Take the place.

        Args:
            step: What tokens go through.
        """
        modules, name = self._place
        self.step = step
        modules[name] = self

    def leave(self) -> None:
        """Give the place back."""
        modules, name = self._place
        modules[name] = self.base
        self.step = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layers of the step give."""
        assert self.step is not None
        return self.step.run(self.base, x)
