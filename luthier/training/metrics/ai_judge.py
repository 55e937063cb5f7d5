"""How good a language model finds the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import alog

from luthier.errors import InvalidInputError
from luthier.training.metrics.base import Metric, ScoredRow

log = alog.use_channel(__name__)

#: From rows with text to a score from 0 to 1 each, None where the judge gave none.
Judge: TypeAlias = Callable[[Sequence[ScoredRow]], Sequence[float | None]]
_Key: TypeAlias = tuple[str, str, str]


class AiJudge(Metric):
    """A score from 0 to 1 by a model behind an OpenAI-compatible endpoint.

    A row that the judge did not score has no value, which is not 0; ``ai_judge_missing`` counts
    them. Scores are kept, so that nothing is asked twice.

    Args:
        judge: Asks.

    Raises:
        InvalidInputError: If there is none.
    """

    name: ClassVar[str] = "ai_judge"
    higher_is_better: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    def __init__(self, judge: Judge | None) -> None:
        if judge is None:
            raise InvalidInputError(
                "metric 'ai_judge' needs an endpoint: the setting judge.base_url, in the "
                "environment JUDGE_BASE_URL"
            )
        self._judge = judge
        self._scores: dict[_Key, float] = {}
        self._failed: set[_Key] = set()

    def of_row(self, row: ScoredRow) -> float | None:
        """The row's score; None without text, or where the judge gave none."""
        if row.generated is None:
            return None
        key = _key(row)
        if key not in self._scores and key not in self._failed:
            self._ask([row])
        return self._scores.get(key)

    def of_all(self, rows: Sequence[ScoredRow]) -> float | None:
        """The mean of the scores; rows that got none before are asked about again."""
        self._failed.clear()
        unknown = {_key(row): row for row in rows if row.generated is not None}
        self._ask([row for key, row in unknown.items() if key not in self._scores])
        return super().of_all(rows)

    def further_values(self, rows: Sequence[ScoredRow]) -> Mapping[str, float]:
        """How many rows have no score."""
        missing = sum(self.of_row(row) is None for row in rows)
        if missing:
            log.warning("the judge gave no score for %d of %d rows", missing, len(rows))
        return {"ai_judge_missing": float(missing)}

    def _ask(self, rows: Sequence[ScoredRow]) -> None:
        if not rows:
            return
        for row, score in zip(rows, self._judge(rows), strict=True):
            if score is None:
                self._failed.add(_key(row))
            else:
                self._scores[_key(row)] = score


def _key(row: ScoredRow) -> _Key:
    return row.input_text, row.reference, row.generated or ""
