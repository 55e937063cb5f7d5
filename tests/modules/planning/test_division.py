"""A request's records are divided as a file's rows would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data_model.datasets.dataset import load_dataset
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError
from luthier.modules.planning.division import divide

RECORDS = [GenerationTrainRecord(input=f"q{row}", output=f"a{row}") for row in range(40)]
OTHERS = [GenerationTrainRecord(input=f"v{row}", output="x") for row in range(20)]


def _names(records: Any) -> list[str]:
    return [record.input for record in records]


@pytest.mark.parametrize(
    "options",
    [
        {"validation_size": 0.0},
        {"validation_size": 0.3},
        {"validation_size": 0.3, "split_seed": 5, "data_sample": 0.5},
        {"validation_size": 0.5, "data_sample": 0.6, "data_sample_choice": ("Validation",)},
        {"validation_size": 0.2, "train_validation_data": True},
    ],
)
def test_the_same_rows_are_chosen_as_from_a_file(options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"input": each.input, "output": each.output}) for each in RECORDS]
    file.write_text("\n".join(lines), "utf-8")
    expected = load_dataset(DatasetOptions(train_dataframe=str(file), **options))
    train, validation = divide(RECORDS, [], DatasetOptions(**options))
    assert _names(train) == _names(expected.train)
    assert _names(validation) == _names(expected.validation)


def test_records_that_came_to_validate_with_are_sampled_and_learned_where_asked() -> None:
    options = DatasetOptions(validation_size=0, data_sample=0.5, train_validation_data=True)
    train, validation = divide(RECORDS, OTHERS, options)
    assert len(validation) == 10
    assert set(_names(validation)) < set(_names(OTHERS))
    assert _names(train)[20:] == _names(validation)
    assert set(_names(train)[:20]) < set(_names(RECORDS))


@pytest.mark.parametrize(
    ("validation", "options", "message"),
    [
        (OTHERS, {"validation_size": 0.1}, "'validation_size' is 0.1.*'val_stream'"),
        ([], {"validation_size": 0, "train_validation_data": True}, "'train_validation_data' has"),
    ],
)
def test_contradictions_are_refused(
    validation: list[GenerationTrainRecord], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        divide(RECORDS, validation, DatasetOptions(**options))
