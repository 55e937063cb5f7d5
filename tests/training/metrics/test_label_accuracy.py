import pytest
from fixtures.scored_rows import scored_row

from luthier.training.metrics.label_accuracy import LabelAccuracy


@pytest.mark.parametrize(
    ("generated", "expected"),
    [("no complaint", 1.0), (" No  Complaint.\n", 1.0), ("complaint", 0.0), ("", 0.0)],
)
def test_case_space_and_a_full_stop_make_no_other_label(generated: str, expected: float) -> None:
    row = scored_row(reference="no complaint", generated=generated)
    assert LabelAccuracy().of_row(row) == expected
