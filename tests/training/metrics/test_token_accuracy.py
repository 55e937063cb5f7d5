from fixtures.scored_rows import scored_row

from luthier.training.metrics.token_accuracy import TokenAccuracy


def test_it_is_the_share_of_tokens() -> None:
    rows = [
        scored_row(num_correct_tokens=1, num_label_tokens=1),
        scored_row(num_correct_tokens=0, num_label_tokens=3),
    ]
    assert [TokenAccuracy().of_row(row) for row in rows] == [1.0, 0.0]
    assert TokenAccuracy().of_all(rows) == 0.25
