from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from luthier.cli.training.experiment_process import run_in_child
from luthier.errors import InvalidInputError


def ignore(event: Mapping[str, Any]) -> None:
    """No event is awaited."""


def test_the_childs_error_is_raised_here_as_its_own_class() -> None:
    with pytest.raises(InvalidInputError, match=r"'general\.model_name' is missing"):
        run_in_child("train", {"general": {"method": "lora"}}, on_event=ignore)
