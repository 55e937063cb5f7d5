"""From the words of the options to metrics."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import InvalidInputError, did_you_mean
from luthier.training.metrics.accuracy import Accuracy
from luthier.training.metrics.ai_judge import AiJudge, Judge
from luthier.training.metrics.base import Metric
from luthier.training.metrics.bleu import Bleu
from luthier.training.metrics.exact_match import ExactMatch
from luthier.training.metrics.label_accuracy import LabelAccuracy
from luthier.training.metrics.loss import Loss
from luthier.training.metrics.macro_f1 import MacroF1
from luthier.training.metrics.perplexity import Perplexity
from luthier.training.metrics.rouge import Rouge1, Rouge2, RougeL
from luthier.training.metrics.row_perplexity import RowPerplexity
from luthier.training.metrics.token_accuracy import TokenAccuracy

#: Word -> class.
METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (
        Loss,
        Perplexity,
        RowPerplexity,
        TokenAccuracy,
        ExactMatch,
        LabelAccuracy,
        Accuracy,
        MacroF1,
        Bleu,
        Rouge1,
        Rouge2,
        RougeL,
        AiJudge,
    )
}


def make_metrics(names: Sequence[str], *, judge: Judge | None = None) -> tuple[Metric, ...]:
    """The metrics of these names, in order.

    Args:
        names: Words of ``METRICS``.
        judge: For ``ai_judge``.

    Returns:
        One metric per name.

    Raises:
        InvalidInputError: For a name that is not known or stands twice, or ``ai_judge`` without a
            judge.
        NotSupportedError: If a metric's package is not installed.
    """
    for name in names:
        if name not in METRICS:
            raise InvalidInputError(
                f"'metrics' names {name[:80]!r}{did_you_mean(name[:80], METRICS)}; known are "
                f"{', '.join(METRICS)}"
            )
    if len(set(names)) < len(names):
        raise InvalidInputError(f"'metrics' names one twice: {', '.join(names)}")
    return tuple(AiJudge(judge) if name == AiJudge.name else METRICS[name]() for name in names)
