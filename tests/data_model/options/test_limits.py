from __future__ import annotations

import dataclasses

from luthier.data_model.options.limits import UNLIMITED, TrainingLimits


def test_no_limit_of_a_server_is_above_unlimited() -> None:
    for field in dataclasses.fields(TrainingLimits):
        assert 0 < getattr(TrainingLimits(), field.name) < getattr(UNLIMITED, field.name)
