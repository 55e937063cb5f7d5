"""ROUGE against its formula."""

import sys

import pytest
from fixtures.scored_rows import scored_row

from luthier.errors import NotSupportedError
from luthier.training.metrics.base import Metric
from luthier.training.metrics.rouge import Rouge1, Rouge2, RougeL

#: 4 of 5 words in common, 2 of 4 pairs, "the cat on mat" in order.
ROW = scored_row(reference="the cat sat on mats", generated="the cat on the mats")


@pytest.mark.parametrize(
    ("metric", "expected"), [(Rouge1, 4 / 5), (Rouge2, 1 / 4), (RougeL, 4 / 5)]
)
def test_the_value_is_that_of_the_formula(metric: type[Metric], expected: float) -> None:
    assert metric().of_row(ROW) == pytest.approx(expected)


def test_without_the_package_it_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(NotSupportedError, match="'rougeL' needs the package rouge-score"):
        RougeL()
