from __future__ import annotations

from fixtures.scored_rows import scored_row

from luthier.training.metrics.accuracy import Accuracy


def test_a_row_counts_if_its_class_is_the_right_one() -> None:
    rows = [
        scored_row(reference="spam", generated="spam"),
        scored_row(reference="spam", generated="ham"),
        scored_row(reference="ham", generated="ham"),
        scored_row(reference="ham", generated="Ham"),
    ]
    assert [Accuracy().of_row(row) for row in rows] == [1, 0, 1, 0]
    assert Accuracy().of_all(rows) == 0.5
