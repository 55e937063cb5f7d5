"""What is measured: what is refused."""

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("metrics", (), "'metrics' must name at least one"),
        ("metrics", ("blue",), "did you mean 'bleu'"),
        ("metrics", ("ai_judge",), "'judge_model' must be given with the metric ai_judge"),
        ("evaluation_epochs", 0, "'evaluation_epochs' must be greater than 0, got 0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
