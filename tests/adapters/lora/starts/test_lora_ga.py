"""Against PEFT: training/test_start_measurement.py."""

from __future__ import annotations

import pytest
from fixtures.lora_starts import start_adapter

from luthier.errors import InvalidInputError


def test_a_rank_that_the_start_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"rank 5 needs 10 parts of layer.*at most 8"):
        start_adapter("lora_ga", rank=5)
