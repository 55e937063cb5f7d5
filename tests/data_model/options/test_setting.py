from __future__ import annotations

import dataclasses

import pytest

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.setting import MAX_NAMES, Setting, option
from luthier.errors import InvalidInputError


@pytest.mark.parametrize(
    ("setting", "good", "bad", "message"),
    [
        (Setting("int", "", minimum=1), 1, 0, "'x' must be at least 1"),
        (Setting("int", "", limit="max_epochs"), 1000, 1001, "1001"),
        (Setting("number", "", above=0, maximum=1), 0.5, 0.0, "'x' must be"),
        (Setting("bool", ""), True, "yes", "'x' must be"),
        (Setting("choice", "", choices=("red", "blue")), "red", "rod", "did you mean 'red'"),
        (Setting("names", "", choices=("red",)), ("red",), ("rod",), "must be one of red"),
        (Setting("names", ""), ("a",), ("a",) * (MAX_NAMES + 1), str(MAX_NAMES)),
    ],
)
def test_a_value_out_of_range_is_refused(
    setting: Setting, good: object, bad: object, message: str
) -> None:
    setting.check("x", good, TrainingLimits())
    with pytest.raises(InvalidInputError, match=message):
        setting.check("x", bad, TrainingLimits())


def test_none_is_for_optional_settings() -> None:
    Setting("int", "", is_optional=True).check("x", None, TrainingLimits())
    with pytest.raises(InvalidInputError):
        Setting("int", "").check("x", None, TrainingLimits())


def test_a_mapping_may_be_a_default() -> None:
    table = dataclasses.make_dataclass("Table", [("rows", dict, option({}, "table", "Rows."))])
    assert table().rows == {}
