import math

import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.perplexity import Perplexity


def test_it_is_the_exponential_of_the_mean_over_tokens() -> None:
    rows = [
        scored_row(loss_sum=2.0, num_label_tokens=1),
        scored_row(loss_sum=1.0, num_label_tokens=3),
    ]
    assert Perplexity().of_all(rows) == pytest.approx(math.exp(0.75))


def test_a_loss_beyond_all_floats_is_infinite() -> None:
    assert Perplexity().of_row(scored_row(loss_sum=1e6)) == math.inf
