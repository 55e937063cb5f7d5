"""What many adapters do to layers, laid so that one step can use any mix of them.

For low-rank deltas each linear layer has one table; an adapter takes as many of its rows as its
rank there, in one piece. Nothing is padded to a common rank, and nothing is copied when rows join
or leave a batch. Where steps can compute with factors of 16 bits, those that lose nothing by it are
held in 16, in further tables.

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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from luthier.adapters.lora.layers import oriented_weight, squares_added
from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.layer_changes import LayerChanges
from luthier.inference.deltas.whole_modules import WholeModules


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


class DeltaTables:
    """The tables of all layers of a model.

    Args:
        layers: Linear layers that can have deltas, by path.
        dtype: What deltas are computed in.
        device: Where.
        narrow: Precisions of 16 bits that factors may be held in which lose nothing by it.
        hosted: Layers whose place an adapter's own may take, by path.
        head: Path of the one among them that can have deltas though it is not among ``layers``,
            because it does not see all tokens; "" for none.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        dtype: torch.dtype,
        device: torch.device,
        narrow: Sequence[torch.dtype] = (),
        hosted: Mapping[str, nn.Module] | None = None,
        head: str = "",
    ) -> None:
        self._layers = dict(layers)
        self._head = head
        #: Layers of adapters' own.
        self.whole = WholeModules(hosted or {}, dtype=dtype, device=device)
        self.dtype, self.device = dtype, device
        self._narrow = tuple(narrow)
        self._tables: dict[torch.dtype, dict[str, DeltaTable]] = {
            each: {} for each in (dtype, *narrow)
        }
        #: Changes whenever a plan made before may hold on to memory that is no longer used.
        self.version = 0
        self._max_ranks: dict[str, int] = {}

    @property
    def by_path(self) -> Mapping[str, DeltaTable]:
        """The tables in the precision that deltas are computed in."""
        return self._tables[self.dtype]

    def of_all_precisions(self) -> Iterator[tuple[str, DeltaTable]]:
        """Each layer's tables, with its path."""
        for tables in self._tables.values():
            yield from tables.items()

    def products(self, key: str) -> dict[str, Product]:
        """An adapter's deltas by path; none if it is not stored."""
        found = ((path, t.content.products.get(key)) for path, t in self.of_all_precisions())
        return {path: product for path, product in found if product is not None}

    def has(self, key: str) -> bool:
        """Whether the adapter is stored."""
        return key in self._max_ranks

    def max_rank(self, key: str) -> int:
        """The largest rank of a stored adapter in any layer."""
        return self._max_ranks[key]

    def takes(self, deltas: frozenset[str], modules: frozenset[str] = frozenset()) -> bool:
        """Whether an adapter can be stored that does something to these layers.

        Args:
            deltas: Paths of layers that it has deltas of.
            modules: Paths of layers that it has its own in the place of.

        Returns:
            True if steps can do all of it.
        """
        return deltas - {self._head} <= self._layers.keys() and self.whole.takes(modules)

    def base_bytes(self, modules: frozenset[str]) -> int:
        """What the base's own layers take in the places of an adapter's."""
        return self.whole.base_bytes(modules)

    def num_bytes(self, changes: LayerChanges) -> int:
        """What an adapter takes here."""
        total = self.whole.num_bytes(changes.modules)
        if changes.rows is not None:
            total += changes.rows.rows.numel() * self.dtype.itemsize
        for each in changes.deltas.values():
            rank, in_features = each.lora_a.shape
            rank *= 2 if each.start_a is not None else 1
            size = rank + (each.magnitude is not None)
            total += size * (in_features + each.lora_b.shape[0]) * self._held_in(each).itemsize
        return total

    def place(self, key: str, changes: LayerChanges) -> None:
        """Store an adapter; call it from one thread at a time.

        Args:
            key: The adapter's; not stored yet.
            changes: What it does.

        Raises:
            NotSupportedError: If DoRA meets a layer that others have quantised.
        """
        try:
            for path, each in changes.deltas.items():
                if path != self._head and self._table(path, each).place(key, each):
                    self.version += 1
            head_delta = changes.deltas.get(self._head)
            around = {} if head_delta is None else {self._head: head_delta}
            self.whole.place(key, changes.modules, rows=changes.rows, deltas=around)
        except BaseException:
            self.remove(key)
            raise
        ranks = [len(product.b) for product in self.products(key).values()]
        self._max_ranks[key] = max(ranks, default=0)

    def remove(self, key: str) -> None:
        """Give an adapter's rows free; no effect if it has none. No step may use it any more."""
        self._max_ranks.pop(key, None)
        self.version += 1
        self.whole.remove(key)
        for _, table in self.of_all_precisions():
            table.remove(key)

    def _table(self, path: str, factors: LoraFactors) -> DeltaTable:
        dtype = self._held_in(factors)
        table = self._tables[dtype].get(path)
        if table is None:
            table = DeltaTable(self._layers[path], dtype=dtype, device=self.device)
            # A new mapping: the engine's thread may be reading the old one.
            self._tables[dtype] = {**self._tables[dtype], path: table}
        return table

    def _held_in(self, factors: LoraFactors) -> torch.dtype:
        """The narrowest precision that is exact; that of DoRA's scales and of starts is."""
        if factors.magnitude is not None or factors.start_a is not None:
            return self.dtype
        lora_a, lora_b = factors.lora_a.detach(), factors.lora_b.detach()
        for dtype in self._narrow:
            if all(_is_exact(each, dtype, factors.scaling) for each in (lora_a, lora_b)):
                return dtype
        return self.dtype


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


def _is_exact(factors: torch.Tensor, dtype: torch.dtype, scaling: float) -> bool:
    """Whether a [N, M] matrix loses nothing in a precision, neither as it is nor scaled."""
    for rows in (factors[:1], factors):  # one row tells most of those that do
        for wide in (rows.float(), rows.float() * scaling):
            if not torch.equal(wide.to(dtype).float(), wide):
                return False
    return True


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
