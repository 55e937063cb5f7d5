"""What processes leave in their folder, as the one that launched them reads it."""

from pathlib import Path

import pytest

from luthier.errors import CancelledError, TrainingDataError
from luthier.training.processes.launched_process import read_reports, reporting


def test_errors_are_told_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    for process, error in (
        (1, KeyError("k")),
        (0, TrainingDataError("row 3")),
        (2, CancelledError()),
    ):
        with pytest.raises(type(error)), reporting(tmp_path, process):
            raise error
    found = [
        (report.process, report.code, report.message, report.type)
        for report in read_reports(tmp_path)
    ]
    assert found == [
        (1, None, "'k'", "KeyError"),
        (0, "invalid_training_data", "row 3", "TrainingDataError"),
        (2, "cancelled", "", "CancelledError"),
    ]


def test_who_ends_well_leaves_no_report(tmp_path: Path) -> None:
    with reporting(tmp_path, 0):
        pass
    assert read_reports(tmp_path) == []
