"""BLEU against its formula."""

import math
import sys

import pytest
from fixtures.scored_rows import scored_row

from luthier.errors import NotSupportedError
from luthier.training.metrics.bleu import Bleu


def test_the_corpus_value_is_that_of_the_formula() -> None:
    rows = [
        scored_row(reference="a b c d e f", generated="a b c d e g"),
        scored_row(reference="u v w x y", generated="u v w x y"),
    ]
    # Matches over totals for n = 1..4; lengths are equal, so nothing is taken off for brevity.
    precisions = [10 / 11, 8 / 9, 6 / 7, 4 / 5]
    expected = 100 * math.prod(precisions) ** 0.25
    assert Bleu().of_all(rows) == pytest.approx(expected)


def test_without_the_package_it_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(NotSupportedError, match=r"needs the package sacrebleu: pip install 'lut"):
        Bleu()
