"""Counting what is cut, row by row, for a ``TruncationReport``."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.training.data.examples import MAX_LISTED_ROWS, TokenizedRow, TruncationReport


@dataclass
class _SideCounts:
    rows: int = 0
    tokens: int = 0
    first_rows: list[int] = field(default_factory=list)

    def count(self, row: int, num_tokens: int) -> None:
        if num_tokens:
            self.rows += 1
            self.tokens += num_tokens
            if len(self.first_rows) < MAX_LISTED_ROWS:
                self.first_rows.append(row)


@dataclass
class CutCounts:
    """What was cut from the rows seen so far."""

    num_rows: int = 0
    _source: _SideCounts = field(default_factory=_SideCounts)
    _target: _SideCounts = field(default_factory=_SideCounts)

    def count(self, row: TokenizedRow) -> None:
        """Take one row into account."""
        self.num_rows += 1
        self._source.count(row.example.row, row.num_source_cut)
        self._target.count(row.example.row, row.num_target_cut)

    def report(self) -> TruncationReport:
        """What was cut in all."""
        return TruncationReport(
            num_rows=self.num_rows,
            num_source_rows=self._source.rows,
            num_source_tokens=self._source.tokens,
            num_target_rows=self._target.rows,
            num_target_tokens=self._target.tokens,
            first_source_rows=tuple(self._source.first_rows),
            first_target_rows=tuple(self._target.first_rows),
        )
