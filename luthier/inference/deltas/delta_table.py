"""The low-rank deltas of one linear layer, laid so that one step can use any mix of them.

An adapter takes as many rows as its rank, in one piece. Nothing is padded to a common rank, and
nothing is copied when rows join or leave a batch.

```
    layer's table        A, [N, in]        B, [N, out]
    adapter X, rank 2    a0                s·b0            s: its scaling, and DoRA's scale
                         a1                s·b1
    adapter Y, rank 1    a0                s·b0
              (DoRA)     not used          magnitude / norm of W + s·B·A
    free                 ...               ...
```
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from luthier.adapters.lora.layers import oriented_weight, squares_added
from luthier.adapters.lora_factors import LoraFactors


@dataclass(frozen=True)
class DeltaRows:
    """Where the delta of one adapter lies in a table.

    Args:
        start: First row.
        rank: R: rows of A and B.
        has_scale: Whether one more row of B scales the layer's own output, as DoRA asks.
    """

    start: int
    rank: int
    has_scale: bool

    @property
    def stop(self) -> int:
        """One past the last row, the scale's included."""
        return self.start + self.rank + self.has_scale


@dataclass(frozen=True)
class Product:
    """One adapter's delta in a table, for tokens that all take it: views of its rows.

    Args:
        a_transposed: [in, R].
        b: [R, out].
        scale: DoRA's, [out], or None.
    """

    a_transposed: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor | None

    def add(self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the delta.

        Args:
            output: The layer's for these tokens, [N, out]; changed.
            x: Its input, [N, in].
            bias: The layer's, [out].
        """
        if self.scale is not None:
            output.copy_(rescaled(output, self.scale, bias))
        output.addmm_(torch.mm(x, self.a_transposed.to(x.dtype)), self.b.to(x.dtype))


@dataclass
class TableContent:
    """One state of a table's memory; replaced as a whole, so a step that holds it can finish.

    Args:
        a: [N, in].
        b: [N, out].
        rows: By adapter.
        products: Likewise.
    """

    a: torch.Tensor
    b: torch.Tensor
    rows: dict[str, DeltaRows] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)

    def add(self, key: str, rows: DeltaRows) -> None:
        """Let an adapter's rows be found."""
        end = rows.start + rows.rank
        scale = self.b[end] if rows.has_scale else None
        self.products[key] = Product(self.a[rows.start : end].t(), self.b[rows.start : end], scale)
        self.rows[key] = rows

    def remove(self, key: str) -> None:
        """Forget an adapter; no effect if it has no rows."""
        self.rows.pop(key, None)
        self.products.pop(key, None)


class DeltaTable:
    """The deltas of one linear layer. One thread writes at a time; another may read meanwhile.

    Args:
        layer: ``nn.Linear`` or ``Conv1D``; read, never changed.
        dtype: What deltas are held in.
        device: Where.
    """

    def __init__(self, layer: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
        self._layer = layer
        out_features, in_features = _features_of(layer)
        self.content = TableContent(
            a=torch.empty(0, in_features, dtype=dtype, device=device),
            b=torch.empty(0, out_features, dtype=dtype, device=device),
        )
        self._squares: torch.Tensor | None = None

    @torch.no_grad()
    def place(self, key: str, factors: LoraFactors) -> bool:
        """Store an adapter's delta.

        Args:
            key: The adapter's; not in the table yet.
            factors: Its delta of this layer.

        Returns:
            True if all rows had to be moved to larger memory.
        """
        lora_a, lora_b = (tensor.to(self.content.a) for tensor in factors.stacked())
        scale = self._dora_scale(factors)
        rank = lora_a.shape[0]
        size = rank + (scale is not None)
        start = self._gap(size)
        is_moved = start is None
        if start is None:
            start = self._rebuild(size)
        content = self.content
        content.a[start : start + rank] = lora_a
        rows = content.b[start : start + rank]
        rows.copy_(lora_b.T)
        rows.mul_(factors.scaling)
        if scale is not None:
            rows.mul_(scale)
            content.a[start + rank] = 0
            content.b[start + rank] = scale
        content.add(key, DeltaRows(start, rank, has_scale=scale is not None))
        return is_moved

    def remove(self, key: str) -> None:
        """Give an adapter's rows free; no effect if it has none."""
        self.content.remove(key)

    def _dora_scale(self, factors: LoraFactors) -> torch.Tensor | None:
        if factors.magnitude is None:
            return None
        lora_a, lora_b = factors.stacked()
        weight = oriented_weight(self._layer).to(lora_a.dtype)
        if self._squares is None:
            self._squares = weight.square().sum(dim=1)
        added = squares_added(weight, lora_a, lora_b, factors.scaling)
        return (factors.magnitude / (self._squares + added).sqrt()).to(self.content.b)

    def _gap(self, size: int) -> int | None:
        """The lowest free place of ``size`` rows."""
        start = 0
        for taken in sorted(self.content.rows.values(), key=lambda rows: rows.start):
            if taken.start - start >= size:
                return start
            start = taken.stop
        return start if len(self.content.a) - start >= size else None

    def _rebuild(self, size: int) -> int:
        """Move all rows together, with room for ``size`` more at the end and some to grow."""
        old = self.content
        num_used = sum(rows.stop - rows.start for rows in old.rows.values())
        num_rows = _roomy(num_used + size, old.a.device)
        new = TableContent(
            a=old.a.new_empty(num_rows, old.a.shape[1]), b=old.b.new_empty(num_rows, old.b.shape[1])
        )
        start = 0
        for key, rows in sorted(old.rows.items(), key=lambda item: item[1].start):
            moved = DeltaRows(start, rows.rank, rows.has_scale)
            new.a[start : moved.stop] = old.a[rows.start : rows.stop]
            new.b[start : moved.stop] = old.b[rows.start : rows.stop]
            new.add(key, moved)
            start = moved.stop
        self.content = new
        return start


def rescaled(output: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A layer's output as DoRA wants it: it scales what the weights give, not the bias.

    Args:
        output: [N, out]; not changed.
        scale: [out], or [N, out].
        bias: [out], or None.

    Returns:
        [N, out].
    """
    return output * scale if bias is None else (output - bias) * scale + bias


def _features_of(layer: nn.Module) -> tuple[int, int]:
    """A layer's numbers of outputs and inputs, told without its weight, which may be packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    out_features, in_features = oriented_weight(layer).shape
    return out_features, in_features


def _roomy(num_rows: int, device: torch.device) -> int:
    """How many rows a table shall have that needs ``num_rows``.

    What nobody has written to costs no memory on a CPU, while blocks that were outgrown may stay
    with the process. On other devices every row costs.
    """
    return max(1024, 2 * num_rows) if device.type == "cpu" else num_rows + num_rows // 4
