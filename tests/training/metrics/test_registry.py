"""Metrics by name."""

import pytest

from luthier.data_model.options.training.evaluation import METRIC_WORDS
from luthier.errors import InvalidInputError
from luthier.training.metrics.registry import METRICS, make_metrics


def test_the_options_know_every_metric() -> None:
    assert tuple(METRICS) == METRIC_WORDS


def test_metrics_come_in_the_order_of_their_names() -> None:
    names = ("token_accuracy", "loss")
    assert tuple(metric.name for metric in make_metrics(names)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [(("blue",), "did you mean 'bleu'"), (("loss", "loss"), "names one twice: loss, loss")],
)
def test_names_that_cannot_be_meant_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_metrics(names)
