"""What many adapters do to the layers of a network.

Each linear layer has one table of low-rank deltas (``delta_table.py``). Where steps can compute
with factors of 16 bits, those that lose nothing by it are held in 16, in further tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from luthier.adapters.lora_factors import LoraFactors
from luthier.inference.deltas.delta_table import DeltaTable, Product
from luthier.inference.deltas.layer_changes import LayerChanges
from luthier.inference.deltas.own_delta import OwnDelta
from luthier.inference.deltas.whole_modules import WholeModules


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
            made = {} if head_delta is None else {self._head: self._with_delta(head_delta)}
            self.whole.place(key, changes.modules, rows=changes.rows, made=made)
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

    def _with_delta(self, factors: LoraFactors) -> OwnDelta:
        head = self.whole.base(self._head)
        return OwnDelta(head, factors, dtype=self.dtype, device=self.device)

    def _held_in(self, factors: LoraFactors) -> torch.dtype:
        """The narrowest precision that is exact; that of DoRA's scales and of starts is."""
        if factors.magnitude is not None or factors.start_a is not None:
            return self.dtype
        lora_a, lora_b = factors.lora_a.detach(), factors.lora_b.detach()
        for dtype in self._narrow:
            if all(_is_exact(each, dtype, factors.scaling) for each in (lora_a, lora_b)):
                return dtype
        return self.dtype


def _is_exact(factors: torch.Tensor, dtype: torch.dtype, scaling: float) -> bool:
    """Whether a [N, M] matrix loses nothing in a precision, neither as it is nor scaled."""
    for rows in (factors[:1], factors):  # one row tells most of those that do
        for wide in (rows.float(), rows.float() * scaling):
            if not torch.equal(wide.to(dtype).float(), wide):
                return False
    return True
