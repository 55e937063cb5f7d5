"""Rows of a batch laid end to end, without padding and without computing anything twice.

Letters: P virtual tokens, C tokens that all rows of the batch begin with, N tokens in the pass::

    rows            a b c d e      a b x      a b y z         labels: e, x, y z
    packed    | P virtual | a b | x' | y' z' | c' d' |        ' sees the whole prefix and its row
                 prefix (P + C)    short rows first

The last token of a row predicts nothing that is learned, so it is left out; so is all that stands
after a row's last label, and a row without labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL

#: Tokens that a common beginning must save before the rows see it through a mask.
_MIN_SAVED_TOKENS = 32


@dataclass(frozen=True)
class RowGroup:
    """Neighbours of one length.

    Args:
        num_rows: How many.
        length: Tokens of each, without the prefix.
    """

    num_rows: int
    length: int


@dataclass(frozen=True)
class RowLayout:
    """Who may see whom: the prefix itself, each row the prefix and itself, never what comes later.

    Args:
        prefix_length: P + C.
        groups: What follows the prefix, in order.
    """

    prefix_length: int
    groups: tuple[RowGroup, ...]

    @property
    def sizes(self) -> list[int]:
        """Tokens of the prefix, if there is one, then of each group."""
        prefix = [self.prefix_length] if self.prefix_length else []
        return [*prefix, *(group.num_rows * group.length for group in self.groups)]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with the prefix."""
        return self.prefix_length + max((group.length for group in self.groups), default=0)


@dataclass(frozen=True)
class PackedRows:
    """One batch as one sequence.

    Args:
        input_ids: The sequence after the virtual tokens, [N - P].
        position_ids: Where each token stands in its own row, virtual tokens counted, [1, N].
        places: Where the states are from which labels are predicted; one may serve several labels.
        labels: As many as ``places``, row after row as in the batch.
        layout: Of the sequence.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor
    layout: RowLayout


def pack_rows(
    batch: TokenBatch, *, num_virtual_tokens: int = 0, shares_text: bool = True
) -> PackedRows | None:
    """Lay the rows of a causal batch end to end.

    Args:
        batch: Right-padded rows.
        num_virtual_tokens: P, computed once for all rows.
        shares_text: Whether tokens that all rows begin with are computed once, too.

    Returns:
        The sequence; None if nothing would be computed, or if a row begins with a label and there
        is no token before it.
    """
    input_ids, labels = batch.input_ids.cpu(), batch.labels.cpu()
    rows, columns = torch.nonzero(labels != IGNORED_LABEL, as_tuple=True)
    if len(rows) == 0 or (num_virtual_tokens == 0 and bool((columns == 0).any())):
        return None
    # The state at column c predicts column c + 1: what comes after the last such state is waste.
    kept = torch.zeros(len(input_ids), dtype=torch.long).scatter_reduce(0, rows, columns, "amax")
    num_shared = _common_tokens(input_ids[rows.unique()], kept[rows.unique()])
    if not shares_text or num_shared * (len(rows.unique()) - 1) < _MIN_SAVED_TOKENS:
        num_shared = 0
    prefix_length = num_virtual_tokens + num_shared

    own = (kept - num_shared).clamp(min=0)
    order = sorted((row for row in range(len(own)) if own[row] > 0), key=own.tolist().__getitem__)
    lengths = [int(own[row]) for row in order]
    if prefix_length + sum(lengths) == 0:
        return None
    starts = torch.zeros(len(own), dtype=torch.long)
    starts[order] = torch.tensor([0, *itertools.accumulate(lengths)][:-1], dtype=torch.long)

    first = int(rows[0])
    pieces = [input_ids[first, :num_shared]]
    pieces += [input_ids[row, num_shared : num_shared + own[row]] for row in order]
    positions = [torch.arange(prefix_length)]
    positions += [torch.arange(prefix_length, prefix_length + length) for length in lengths]
    # Column c is predicted from place P + c - 1 within the row's own view of the sequence.
    seen_at = num_virtual_tokens + columns - 1
    places = torch.where(seen_at < prefix_length, seen_at, seen_at + starts[rows])
    device = batch.input_ids.device
    return PackedRows(
        input_ids=torch.cat(pieces).to(device),
        position_ids=torch.cat(positions)[None].to(device),
        places=places.to(device),
        labels=labels[rows, columns].to(device),
        layout=_layout(prefix_length, lengths),
    )


def _common_tokens(input_ids: torch.Tensor, kept: torch.Tensor) -> int:
    """How many first tokens all rows have in common, at most the shortest row's."""
    shortest = input_ids[:, : int(kept.min())]
    return int((shortest == shortest[0]).all(dim=0).long().cumprod(dim=0).sum())


def _layout(prefix_length: int, lengths: Sequence[int]) -> RowLayout:
    """Neighbours of one length together; a prefix of one row alone is the row's beginning."""
    if len(lengths) == 1:
        return RowLayout(0, (RowGroup(1, prefix_length + lengths[0]),))
    groups = (RowGroup(len(list(rows)), length) for length, rows in itertools.groupby(lengths))
    return RowLayout(prefix_length, tuple(groups))
