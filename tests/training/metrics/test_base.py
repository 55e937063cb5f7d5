"""What holds for every metric."""

import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.base import Metric
from luthier.training.metrics.registry import METRICS, make_metrics


def make(name: str) -> Metric:
    """A metric; the judge finds how many words are right."""
    (metric,) = make_metrics(
        [name],
        judge=lambda rows: [
            len({*row.reference.split()} & {*(row.generated or "").split()}) / 8 for row in rows
        ],
    )
    return metric


@pytest.mark.parametrize("name", METRICS)
def test_one_row_alone_has_the_value_of_all(name: str) -> None:
    metric = make(name)
    row = scored_row(reference="a b c d e", generated="a b c d f")
    value = metric.of_row(row)
    assert value is not None
    assert metric.of_all([row]) == pytest.approx(value)
    assert metric.of_all([row, row]) == pytest.approx(value)


@pytest.mark.parametrize("name", METRICS)
def test_a_row_without_text_is_missing_and_not_zero(name: str) -> None:
    metric = make(name)
    silent, good = scored_row(), scored_row(reference="a b c d", generated="a b c d")
    if metric.needs_text:
        assert metric.of_row(silent) is None
        assert metric.of_all([silent]) is None
        assert metric.of_all([silent, good]) == metric.of_all([good])
    else:
        assert metric.of_row(silent) is not None


@pytest.mark.parametrize("name", METRICS)
def test_better_is_where_it_says(name: str) -> None:
    metric = make(name)
    good = metric.of_row(
        scored_row(loss_sum=0.1, num_correct_tokens=2, reference="a b c d", generated="a b c d")
    )
    bad = metric.of_row(
        scored_row(loss_sum=9.0, num_correct_tokens=0, reference="a b c d", generated="x y")
    )
    assert good is not None and bad is not None
    assert (good > bad) is metric.higher_is_better
