"""What one step adds to each linear layer: which tokens, by which adapter's delta.

On CPUs in fp32 one call of a kernel of ours (``delta_kernel.py``) does all of a layer. Elsewhere
PyTorch does: where an adapter has many tokens, ordinary products are fastest, but each costs some
microseconds beside its arithmetic. Where many adapters have one token each, two of its kernels that
gather rows (a sampled product for A, a weighted bag of rows for B) take all their tokens together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from luthier.inference.deltas.delta_kernel import KernelSpans, KernelStep, delta_kernel
from luthier.inference.deltas.delta_table import DeltaRows, Product, TableContent, rescaled
from luthier.inference.deltas.delta_tables import DeltaTables

#: Rank times tokens of an adapter up to which it is gathered though it has more tokens than one:
#: a product reads its rows once, gathering once for each token.
_MAX_GATHERED_ROWS = 16
#: Adapters from which on gathering, which has a cost of its own, beats a product for each.
MIN_GATHERED_ADAPTERS = 12


@dataclass(frozen=True)
class AdapterSpan:
    """Neighbouring tokens of a step that belong to one adapter.

    Args:
        key: The adapter's.
        count: How many.
        is_gathered: Whether its rows are gathered token by token.
    """

    key: str
    count: int
    is_gathered: bool


def choose_spans(counts: Mapping[str, int], tables: DeltaTables) -> list[AdapterSpan]:
    """Decide for each adapter of a step how its tokens are taken.

    Args:
        counts: Tokens of each adapter.
        tables: They hold the adapters.

    Returns:
        Gathered ones first, among them those with layers of their own, so that the base's layer
        finds its tokens together; in an order that does not depend on that of ``counts``.
    """
    small = {
        key
        for key, count in counts.items()
        if count == 1 or count * tables.max_rank(key) <= _MAX_GATHERED_ROWS
    }
    if len(small) < MIN_GATHERED_ADAPTERS:
        small = set()
    spans = [AdapterSpan(key, count, key in small) for key, count in counts.items()]
    return sorted(
        spans, key=lambda span: (not span.is_gathered, not tables.whole.has(span.key), span.key)
    )


class Gather:
    """The rows of a table that the gathered tokens use, one list of rows for each token.

    Made once and used by every layer whose table has the same rows for these adapters.

    Args:
        rows: For each token its adapter's rows, None if the layer has no delta of it.
        like: The table.
    """

    def __init__(self, rows: Sequence[DeltaRows | None], like: TableContent) -> None:
        device = like.a.device
        starts = [0]
        columns: list[int] = []
        owners: list[int] = []
        scaled: list[int] = []
        scales: list[int] = []
        for token, each in enumerate(rows):
            if each is not None:
                columns.extend(range(each.start, each.start + each.rank))
                owners.extend([token] * each.rank)
                if each.has_scale:
                    scaled.append(token)
                    scales.append(each.start + each.rank)
            starts.append(len(columns))
        self._columns = torch.tensor(columns, device=device)
        self._starts = torch.tensor(starts, device=device)
        self._scaled = torch.tensor(scaled, device=device) if scaled else None
        self._scales = torch.tensor(scales, device=device)
        is_sampled = device.type == "cpu" and like.a.dtype in (torch.float32, torch.float64)
        self._owners = None if is_sampled else torch.tensor(owners, device=device)
        if is_sampled:
            self._low = torch.zeros(len(columns), dtype=like.a.dtype)
            self._pattern = _sparse(self._starts, self._columns, self._low, len(like.a))
            # Half the bytes of numbers that are read beside the rows themselves.
            self._columns, self._starts = self._columns.int(), self._starts.int()

    def add(
        self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, table: TableContent
    ) -> None:
        """Add the deltas of the gathered tokens.

        Args:
            output: The layer's for these tokens, [N, out]; changed.
            x: Its input, [N, in].
            bias: The layer's, [out].
            table: Its deltas.
        """
        if self._scaled is not None:
            scale = table.b.index_select(0, self._scales)
            own = output.index_select(0, self._scaled)
            output.index_copy_(0, self._scaled, rescaled(own, scale, bias))
        if self._owners is not None:
            low = (table.a[self._columns] * x[self._owners]).sum(dim=1, keepdim=True)
            output.index_add_(0, self._owners, table.b[self._columns] * low)
            return
        # The pattern's values are ``_low``: written in place, so that the pattern is not copied.
        # What was NaN there would stay NaN, whatever ``beta`` is.
        self._low.zero_()
        torch.sparse.sampled_addmm(self._pattern, x, table.a.t(), beta=0.0, out=self._pattern)
        output += torch.embedding_bag(
            table.b, self._columns, self._starts, False, 0, False, self._low, True
        )[0]


@dataclass(frozen=True)
class LayerStep:
    """What a step adds to one layer.

    Args:
        table: The layer's deltas.
        gather: For the first tokens of the step, if they have any here.
        sizes: Tokens in each part of the step: the gathered, each span, and all others.
        products: One for each span; None where the layer has no delta of its adapter.
    """

    table: TableContent
    gather: Gather | None
    sizes: list[int]
    products: tuple[Product | None, ...]

    def add(self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the deltas.

        Args:
            output: The layer's, [N, out] or [1, N, out]; changed.
            x: Its input, [N, in] or [1, N, in].
            bias: The layer's, [out].
        """
        if output.ndim == 3:
            output, x = output[0], x[0]
        outputs, inputs = output.split(self.sizes), x.split(self.sizes)
        if self.gather is not None:
            self.gather.add(outputs[0], inputs[0], bias, self.table)
        for index, product in enumerate(self.products, start=1):
            if product is not None:
                product.add(outputs[index], inputs[index], bias)


def plan_step(
    tables: DeltaTables, spans: Sequence[AdapterSpan], *, num_tokens: int
) -> dict[str, KernelStep] | dict[str, LayerStep]:
    """What to add where.

    Args:
        tables: They hold every adapter of ``spans``.
        spans: The step's first tokens in order, gathered ones first.
        num_tokens: Of the whole step; those after the spans get nothing.

    Returns:
        By path, for the layers that have any delta of these adapters.
    """
    call = delta_kernel(tables.dtype, tables.device)
    if call is not None:
        return _plan_for_kernel(call, tables, spans)
    gathered = [span for span in spans if span.is_gathered]
    others = spans[len(gathered) :]
    sizes = [sum(span.count for span in gathered), *(span.count for span in others)]
    sizes.append(num_tokens - sum(sizes))
    counts = [span.count for span in gathered]
    gathers: dict[tuple[object, ...], Gather] = {}
    steps: dict[str, LayerStep] = {}
    for path, table in tables.by_path.items():
        content = table.content
        products = tuple(content.products.get(span.key) for span in others)
        rows = [content.rows.get(span.key) for span in gathered]
        gather = None
        if any(rows):
            known = (len(content.a), *rows)
            gather = gathers.get(known)
            if gather is None:
                pairs = zip(rows, counts, strict=True)
                of_tokens = [each for each, count in pairs for _ in range(count)]
                gather = gathers[known] = Gather(of_tokens, content)
        if gather is not None or any(products):
            steps[path] = LayerStep(content, gather, sizes, products)
    return steps


def _plan_for_kernel(
    call: Callable[..., None], tables: DeltaTables, spans: Sequence[AdapterSpan]
) -> dict[str, KernelStep]:
    """The same by our kernel, which takes all spans alike."""
    counts = [span.count for span in spans]
    made: dict[tuple[DeltaRows | None, ...], KernelSpans] = {}
    parts: dict[str, list[tuple[KernelSpans, TableContent]]] = {}
    for path, table in tables.of_all_precisions():
        content = table.content
        rows = tuple(content.rows.get(span.key) for span in spans)
        if any(rows):
            if rows not in made:
                made[rows] = KernelSpans(counts, rows)
            parts.setdefault(path, []).append((made[rows], content))
    return {path: KernelStep(call, each) for path, each in parts.items()}


def _sparse(
    starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """The places of a [tokens, rows of the table] matrix that are to be computed."""
    with warnings.catch_warnings():
        # Sparse CSR tensors are announced as beta, once per process.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts,
            columns,
            values,
            size=(len(starts) - 1, num_rows),
            check_invariants=False,
        )
