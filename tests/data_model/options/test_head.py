from __future__ import annotations

import pytest

from luthier.data_model.options.head import HeadOptions
from luthier.data_model.options.limits import TrainingLimits
from luthier.errors import InvalidInputError


def test_a_head_has_the_classes_of_its_rows_unless_they_are_named() -> None:
    HeadOptions().validate(TrainingLimits())
    HeadOptions(labels=("ham", "spam"), use_lora=False).validate(TrainingLimits())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (HeadOptions(labels=("ham", "")), r"'head.labels\[1\]' must not be empty"),
        (HeadOptions(labels=("ham", "\ud83d")), r"'head.labels\[1\]' is no valid text"),
        (HeadOptions(labels="ham"), "'head.labels' must be a list of names"),  # type: ignore[arg-type]
        (HeadOptions(use_lora="no"), "'head.use_lora' must be true or false"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused(options: HeadOptions, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        options.validate(TrainingLimits())
