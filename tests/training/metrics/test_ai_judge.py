"""A judge's scores: what is missing is missing, and nothing is asked twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from luthier.errors import InvalidInputError
from luthier.training.evaluation.evaluation import evaluate_rows
from luthier.training.metrics.ai_judge import AiJudge
from luthier.training.metrics.base import ScoredRow


def row(number: int, generated: str | None) -> ScoredRow:
    return ScoredRow(number, 1.0, 1, 1, "in", "out", generated)


class Judge:
    """Gives 0.5 to "half", 1 to "good", nothing to the rest."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def __call__(self, rows: Sequence[ScoredRow]) -> list[float | None]:
        self.asked += [each.generated for each in rows]
        return [{"half": 0.5, "good": 1.0}.get(each.generated or "") for each in rows]


def test_rows_without_a_score_are_counted_and_do_not_count_as_0():
    judge = Judge()
    rows = (row(1, "half"), row(2, "good"), row(3, "bad"), row(4, None))
    evaluation = evaluate_rows(rows, (AiJudge(judge),), epoch=0, step=1)
    assert evaluation.point.metrics == {"ai_judge": 0.75, "ai_judge_missing": 2.0}
    values = [evaluation.metrics[0].of_row(each) for each in rows]
    assert values == [0.5, 1.0, None, None]
    assert judge.asked == ["half", "good", "bad"]


def test_only_what_failed_is_asked_again_in_the_next_evaluation():
    judge = Judge()
    metric = AiJudge(judge)
    metric.of_all([row(1, "half"), row(2, "bad")])
    metric.of_all([row(1, "half"), row(2, "bad"), row(3, "good")])
    assert judge.asked == ["half", "bad", "bad", "good"]


def test_no_score_at_all_is_no_value():
    metric = AiJudge(Judge())
    assert metric.of_all([row(1, "bad"), row(2, None)]) is None


def test_without_an_endpoint_there_is_no_such_metric():
    with pytest.raises(InvalidInputError, match="JUDGE_BASE_URL"):
        AiJudge(None)
