"""BLEU by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from luthier.errors import NotSupportedError
from luthier.training.metrics.base import Metric, ScoredRow


class Bleu(Metric):
    """From 0 to 100: of the corpus for all rows, smoothed and of the sentence for one.

    Raises:
        NotSupportedError: If sacrebleu is not installed.

    Source:
        Papineni et al. 2002; Post 2018, https://arxiv.org/abs/1804.08771
    """

    name: ClassVar[str] = "bleu"
    higher_is_better: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    def __init__(self) -> None:
        try:
            import sacrebleu  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise NotSupportedError(
                "metric 'bleu' needs the package sacrebleu: pip install 'luthier[metrics]'"
            ) from error
        self._sacrebleu = sacrebleu

    def of_row(self, row: ScoredRow) -> float | None:
        """The sentence's; None without text."""
        if row.generated is None:
            return None
        return float(self._sacrebleu.sentence_bleu(row.generated, [row.reference]).score)

    def of_all(self, rows: Sequence[ScoredRow]) -> float | None:
        """The corpus's."""
        texts = [(row.generated, row.reference) for row in rows if row.generated is not None]
        if not texts:
            return None
        generated, references = zip(*texts, strict=True)
        return float(self._sacrebleu.corpus_bleu(list(generated), [list(references)]).score)
