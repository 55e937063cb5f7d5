"""ROUGE by rouge-score."""

from __future__ import annotations

from typing import ClassVar

from luthier.errors import NotSupportedError
from luthier.training.metrics.base import Metric, ScoredRow


class _Rouge(Metric):
    """F1 from 0 to 1, with stems, averaged over rows.

    Raises:
        NotSupportedError: If rouge-score is not installed.

    Source:
        Lin 2004, https://aclanthology.org/W04-1013
    """

    higher_is_better: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    #: rouge-score's word.
    kind: ClassVar[str]

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise NotSupportedError(
                f"metric {self.name!r} needs the package rouge-score: "
                "pip install 'luthier[metrics]'"
            ) from error
        self._scorer = RougeScorer([self.kind], use_stemmer=True)

    def of_row(self, row: ScoredRow) -> float | None:
        """The row's; None without text."""
        if row.generated is None:
            return None
        return float(self._scorer.score(row.reference, row.generated)[self.kind].fmeasure)


class Rouge1(_Rouge):
    """Words in common."""

    name: ClassVar[str] = "rouge1"
    kind: ClassVar[str] = "rouge1"


class Rouge2(_Rouge):
    """Pairs of words in common."""

    name: ClassVar[str] = "rouge2"
    kind: ClassVar[str] = "rouge2"


class RougeL(_Rouge):
    """Longest common subsequence of words."""

    name: ClassVar[str] = "rougeL"
    kind: ClassVar[str] = "rougeL"
