import math

import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.row_perplexity import RowPerplexity


def test_every_row_weighs_the_same() -> None:
    rows = [
        scored_row(loss_sum=2.0, num_label_tokens=1),
        scored_row(loss_sum=1.0, num_label_tokens=3),
    ]
    expected = (math.exp(2.0) + math.exp(1 / 3)) / 2
    assert RowPerplexity().of_all(rows) == pytest.approx(expected)
