"""What an evaluation says, and when there is one."""

import math

import pytest
from fixtures.scored_rows import scored_row

from luthier.training.evaluation.evaluation import evaluate_rows, is_evaluation_due
from luthier.training.metrics.registry import make_metrics


def test_a_tenth_of_an_epoch_is_exactly_that() -> None:
    due = [
        update
        for update in range(1, 101)
        if is_evaluation_due(update, num_updates=100, updates_per_epoch=100, evaluation_epochs=0.1)
    ]
    assert due == list(range(10, 101, 10))


def test_the_value_is_that_of_the_first_metric() -> None:
    rows = (scored_row(loss_sum=3.0), scored_row(loss_sum=1.0))
    metrics = make_metrics(["perplexity", "loss"])
    evaluation = evaluate_rows(rows, metrics, epoch=1, step=7)
    mean = sum(row.loss_sum for row in rows) / sum(row.num_label_tokens for row in rows)
    assert (evaluation.point.epoch, evaluation.point.step) == (1, 7)
    assert evaluation.point.value == evaluation.point.metrics["loss"] == pytest.approx(mean)
    assert evaluation.value == pytest.approx(math.exp(mean))
    assert evaluation.rows == rows
