from fixtures.scored_rows import scored_row

from luthier.training.metrics.loss import Loss


def test_all_rows_are_averaged_over_tokens() -> None:
    rows = [
        scored_row(loss_sum=2.0, num_label_tokens=1),
        scored_row(loss_sum=1.0, num_label_tokens=3),
    ]
    assert [Loss().of_row(row) for row in rows] == [2.0, 1 / 3]
    assert Loss().of_all(rows) == 0.75
