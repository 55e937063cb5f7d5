import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("generated", "expected"), [("out", 1.0), (" out\n", 1.0), ("Out", 0.0), ("out.", 0.0)]
)
def test_only_space_around_the_text_is_forgiven(generated: str, expected: float) -> None:
    assert ExactMatch().of_row(scored_row(generated=generated)) == expected
