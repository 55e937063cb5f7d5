from __future__ import annotations

import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.macro_f1 import MacroF1


def score(pairs: list[tuple[str, str]]) -> float:
    rows = [scored_row(reference=right, generated=taken) for right, taken in pairs]
    return MacroF1().of_all(rows)


def test_each_class_counts_the_same() -> None:
    """By hand: a: precision 2/3, recall 2/2, F1 0.8; b: precision 1, recall 1/2, F1 2/3."""
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b")]
    assert score(pairs) == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_class_that_is_never_hit_counts_zero() -> None:
    assert score([("a", "a"), ("b", "c")]) == pytest.approx(1 / 3)


def test_a_class_that_no_row_is_of_or_was_taken_for_does_not_count() -> None:
    assert score([("a", "a"), ("b", "b")]) == 1


def test_one_row_alone_is_right_or_wrong() -> None:
    for taken, value in (("a", 1), ("b", 0)):
        row = scored_row(reference="a", generated=taken)
        assert MacroF1().of_row(row) == MacroF1().of_all([row]) == value
