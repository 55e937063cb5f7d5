"""What one step adds to each linear layer: which tokens, by which adapter's delta.

A token that is alone with its adapter reads the adapter's rows once, whatever one does: two kernels
that gather rows (a sampled product for A, a weighted bag of rows for B) take all such tokens
together, at the speed of memory. Where an adapter has more tokens, ordinary products are faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.inference.delta_tables import DeltaRows, DeltaTables, TableContent

#: Tokens of one adapter that are still taken one by one.
MAX_FEW_TOKENS = 3


@dataclass(frozen=True)
class AdapterSpan:
    """Neighbouring tokens of a step that belong to one adapter.

    Args:
        key: The adapter's.
        count: How many.
    """

    key: str
    count: int

    @property
    def is_short(self) -> bool:
        """Whether its tokens are taken one by one."""
        return self.count <= MAX_FEW_TOKENS


class Gather:
    """The rows of a table that the step's first tokens use, one list of rows for each token.

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
        self.num_tokens = len(rows)
        self._columns = torch.tensor(columns, device=device)
        self._starts = torch.tensor(starts, device=device)
        self._scaled = torch.tensor(scaled, device=device) if scaled else None
        self._scales = torch.tensor(scales, device=device)
        is_sampled = device.type == "cpu" and like.a.dtype in (torch.float32, torch.float64)
        self._owners = None if is_sampled else torch.tensor(owners, device=device)
        if is_sampled:
            self._pattern = _sparse(self._starts, self._columns, like.a)

    def add(
        self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, table: TableContent
    ) -> None:
        """Add the deltas of the first tokens.

        Args:
            output: The layer's, [N, out]; changed.
            x: Its input, [N, in].
            bias: The layer's, [out].
            table: Its deltas.
        """
        output, x = output[: self.num_tokens], x[: self.num_tokens]
        if self._scaled is not None:
            scale = table.b.index_select(0, self._scales)
            own = output.index_select(0, self._scaled)
            output.index_copy_(0, self._scaled, _rescaled(own, scale, bias))
        if self._owners is not None:
            low = (table.a[self._columns] * x[self._owners]).sum(dim=1, keepdim=True)
            output.index_add_(0, self._owners, table.b[self._columns] * low)
            return
        low = torch.sparse.sampled_addmm(self._pattern, x, table.a.t(), beta=0.0).values()
        output += torch.embedding_bag(
            table.b, self._columns, self._starts, False, 0, False, low, True
        )[0]


@dataclass(frozen=True)
class Span:
    """Tokens [first, stop) and the delta that they share: A [R, in], B [R, out]."""

    first: int
    stop: int
    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor | None

    def add(self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the delta to these tokens; see ``Gather.add``."""
        own = output[self.first : self.stop]
        if self.scale is not None:
            own.copy_(_rescaled(own, self.scale, bias))
        own.addmm_(x[self.first : self.stop] @ self.a.t(), self.b)


@dataclass(frozen=True)
class LayerStep:
    """What a step adds to one layer.

    Args:
        table: The layer's deltas.
        gather: For the first tokens of the step, if they have any here.
        spans: For others.
    """

    table: TableContent
    gather: Gather | None
    spans: tuple[Span, ...]

    def add(self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the deltas.

        Args:
            output: The layer's, [N, out]; changed.
            x: Its input, [N, in].
            bias: The layer's, [out].
        """
        if self.gather is not None:
            self.gather.add(output, x, bias, self.table)
        for span in self.spans:
            span.add(output, x, bias)


def plan_step(tables: DeltaTables, spans: Sequence[AdapterSpan]) -> dict[str, LayerStep]:
    """What to add where.

    Args:
        tables: They hold every adapter of ``spans``.
        spans: The step's first tokens in order, short spans first; all other tokens get nothing.

    Returns:
        By path, for the layers that have any delta of these adapters.
    """
    short = [span for span in spans if span.is_short]
    num_short = sum(span.count for span in short)
    gathers: dict[tuple[object, ...], Gather] = {}
    steps: dict[str, LayerStep] = {}
    for path, table in tables.by_path.items():
        content = table.content
        rows = [content.rows.get(span.key) for span in short]
        gather = None
        if any(rows):
            known = (len(content.a), *rows)
            gather = gathers.get(known)
            if gather is None:
                of_tokens = [
                    each for each, s in zip(rows, short, strict=True) for _ in range(s.count)
                ]
                gather = gathers[known] = Gather(of_tokens, content)
        long = _long_spans(content, spans[len(short) :], first=num_short)
        if gather is not None or long:
            steps[path] = LayerStep(content, gather, long)
    return steps


def _long_spans(
    content: TableContent, spans: Sequence[AdapterSpan], *, first: int
) -> tuple[Span, ...]:
    found = []
    for span in spans:
        rows = content.rows.get(span.key)
        stop = first + span.count
        if rows is not None:
            end = rows.start + rows.rank
            scale = content.b[end] if rows.has_scale else None
            found.append(
                Span(first, stop, content.a[rows.start : end], content.b[rows.start : end], scale)
            )
        first = stop
    return tuple(found)


def _rescaled(output: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """DoRA scales what the weights give, not the bias."""
    return output * scale if bias is None else (output - bias) * scale + bias


def _sparse(starts: torch.Tensor, columns: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Zeros at the places of a [tokens, rows of the table] matrix that are to be computed."""
    with warnings.catch_warnings():
        # Sparse CSR tensors are announced as beta, once per process.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts,
            columns,
            torch.zeros(len(columns), dtype=table.dtype),
            size=(len(starts) - 1, len(table)),
            check_invariants=False,
        )
