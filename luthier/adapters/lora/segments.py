"""LoRA of several adapters in one layer: each stretch of tokens gets the delta of its own.

::

    tokens of a pass      | job A ........ | job B ... | job C ........... |
    frozen layer          |  one product over all of them                 |
    deltas                |  A's           |  none     |  C's              |

In a padded pass the stretches are rows, whatever their width in a layer.

Nothing of one stretch is ever multiplied with anything of another, so what is no number in one
stays there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.adapters.lora.layers import LoraLinear, oriented_weight

#: From, to (exclusive), A, B and scaling of one delta.
_Delta: TypeAlias = tuple[int, int, torch.Tensor, torch.Tensor, float]


class RandomStream:
    """A sequence of torch's global random numbers that can be left and taken up again.

    Args:
        seed: From 0.
        device: Whose numbers are drawn, beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        with self._restored():
            torch.manual_seed(seed)
            self._states = self._read()

    @contextlib.contextmanager
    def drawn_from(self) -> Iterator[None]:
        """What is drawn meanwhile comes from this sequence; others go on as if nothing had been."""
        with self._restored():
            torch.random.set_rng_state(self._states[0])
            if self._device is not None:
                torch.cuda.set_rng_state(self._states[1], self._device)
            yield
            self._states = self._read()

    def _read(self) -> list[torch.Tensor]:
        states = [torch.random.get_rng_state()]
        if self._device is not None:
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _restored(self) -> contextlib.AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[] if self._device is None else [self._device])


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a pass's tokens, or of its rows, that belongs to one adapter.

    Args:
        owner: Under which the layers know the adapter.
        start: First token; of a padded pass the first row.
        stop: The token or row after the last.
        stream: Where its dropout comes from; None if there is none.
        widths: Of a padded pass: columns of the pass to those that this segment fills, for each
            stack of the network.
    """

    owner: Hashable
    start: int
    stop: int
    stream: RandomStream | None = None
    widths: Mapping[int, int] | None = None

    def in_tokens(self, width: int) -> Segment:
        """The same segment of a padded pass's rows, laid end to end.

        Args:
            width: Columns of the pass.

        Returns:
            A segment that counts tokens.
        """
        return replace(self, start=self.start * width, stop=self.stop * width)


class SegmentPlan:
    """The segments of the pass that is under way, one object for all layers of a network."""

    def __init__(self) -> None:
        self.segments: Sequence[Segment] = ()
        self.is_padded = False


class SegmentedLora(nn.Module):
    """A frozen linear layer with the deltas of any number of adapters.

    Args:
        base: ``nn.Linear`` or ``Conv1D``, or a quantised one; kept, shared, not changed.
        plan: Says which tokens are whose, from pass to pass.

    Shape:
        forward: [1, N, in] -> [1, N, out], dtype of ``base``; of a padded pass [B, T, in] ->
        [B, T, out].
    """

    def __init__(self, base: nn.Module, plan: SegmentPlan) -> None:
        super().__init__()
        self.base = base
        #: Owner to its delta here. A plain dict: the adapters' parameters are not this network's.
        self.deltas: dict[Hashable, LoraLinear] = {}
        self._plan = plan

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight; some models look at its dtype."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output with each segment's delta."""
        segments = self._plan.segments
        if not self._plan.is_padded:
            return self._with_deltas(x, segments, None)
        num_rows, width = x.shape[:2]
        in_tokens = [segment.in_tokens(width) for segment in segments]
        output = self._with_deltas(x.reshape(1, num_rows * width, -1), in_tokens, width)
        return output.view(num_rows, width, -1)

    def _with_deltas(
        self, x: torch.Tensor, segments: Sequence[Segment], width: int | None
    ) -> torch.Tensor:
        plain: list[tuple[Segment, LoraLinear]] = []
        others: list[tuple[Segment, LoraLinear]] = []
        for segment in segments:
            layer = self.deltas.get(segment.owner)
            if layer is not None:
                (plain if layer.is_plain(x) else others).append((segment, layer))
        output = self._with_plain(x, plain) if plain else self.base(x)
        return _with_others(x, output, others, width) if others else output

    def _with_plain(
        self, x: torch.Tensor, parts: Sequence[tuple[Segment, LoraLinear]]
    ) -> torch.Tensor:
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        places: list[tuple[int, int, float]] = []
        factors: list[torch.Tensor] = []
        for segment, layer in parts:
            places.append((segment.start, segment.stop, layer.scaling))
            factors += layer.stacked()
        output: torch.Tensor = _PlainDeltas.apply(  # type: ignore[no-untyped-call]
            x, oriented_weight(self.base), bias, places, *factors
        )
        return output


def _with_others(
    x: torch.Tensor,
    output: torch.Tensor,
    parts: Sequence[tuple[Segment, LoraLinear]],
    width: int | None,
) -> torch.Tensor:
    """Deltas that have their own way: DoRA, dropout, another dtype, a quantised base."""
    by_start = {segment.start: (segment, layer) for segment, layer in parts}
    bounds = sorted({0, x.shape[1], *(at for s, _ in parts for at in (s.start, s.stop))})
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    pieces = []
    stretches = zip(bounds, x.split(sizes, dim=1), output.split(sizes, dim=1), strict=False)
    for start, read, written in stretches:
        if start not in by_start:
            pieces.append(written)
            continue
        segment, layer = by_start[start]
        stream = segment.stream if layer.draws else None
        with stream.drawn_from() if stream is not None else contextlib.nullcontext():
            if width is None:
                pieces.append(layer.add_delta(read, written))
            else:
                pieces.append(_with_padding(layer, read, written, segment, width))
    return torch.cat(pieces, dim=1)


def _with_padding(
    layer: LoraLinear, read: torch.Tensor, written: torch.Tensor, segment: Segment, width: int
) -> torch.Tensor:
    """The delta of rows of a padded pass without what is padding in this pass alone: as many random
    numbers are drawn as the rows by themselves would draw."""
    own = width if segment.widths is None else segment.widths[width]
    rows, outputs = (tensor.view(-1, width, tensor.shape[-1]) for tensor in (read, written))
    own_rows = layer.add_delta(rows[:, :own].contiguous(), outputs[:, :own])
    return torch.cat([own_rows, outputs[:, own:]], dim=1).view(written.shape)


class _PlainDeltas(torch.autograd.Function):
    """``x Wᵀ + bias``, and ``s (x Aᵀ) Bᵀ`` added in place where a segment has a delta."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        places: Sequence[tuple[int, int, float]],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output = functional.linear(rows, weight, bias)
        lows = []
        for start, stop, lora_a, lora_b, scaling in _deltas(places, factors):
            low = (rows[start:stop] @ lora_a.T).mul_(scaling)
            output[start:stop].addmm_(low, lora_b.T)
            lows.append(low)
        ctx.save_for_backward(rows, weight, *lows, *factors)
        ctx.places, ctx.shape = places, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, *others = ctx.saved_tensors
        lows, factors = others[: len(ctx.places)], others[len(ctx.places) :]
        grad = grad_output.reshape(-1, grad_output.shape[-1])
        wants_x, wants_factors = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        grad_x = grad @ weight if wants_x else None
        grads: list[torch.Tensor | None] = []
        deltas = _deltas(ctx.places, factors)
        for index, (start, stop, lora_a, lora_b, scaling) in enumerate(deltas):
            of_segment, wants_a = grad[start:stop], wants_factors[2 * index]
            if wants_a or grad_x is not None:
                grad_low = (of_segment @ lora_b).mul_(scaling)
            if grad_x is not None:
                grad_x[start:stop].addmm_(grad_low, lora_a)
            grads.append(grad_low.T @ rows[start:stop] if wants_a else None)
            grads.append(of_segment.T @ lows[index] if wants_factors[2 * index + 1] else None)
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        return grad_x, None, None, None, *grads


def _deltas(
    places: Sequence[tuple[int, int, float]], factors: Sequence[torch.Tensor]
) -> Iterator[_Delta]:
    for (start, stop, scaling), lora_a, lora_b in zip(
        places, factors[::2], factors[1::2], strict=True
    ):
        yield start, stop, lora_a, lora_b, scaling
