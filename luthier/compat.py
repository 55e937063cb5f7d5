"""The only patches of third parties. Each says which version needs it and why.

Importing this module applies them; it must happen before the first ``import caikit``.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np


def _issubclass_(arg1: Any, arg2: Any) -> bool:
    return isinstance(arg1, type) and issubclass(arg1, arg2)


def restore_numpy_issubclass() -> None:
    """Give numpy >= 2 back ``np.issubclass_``, which caikit 0.29's pydantic_wrapper calls."""
    if not hasattr(np, "issubclass_"):
        np.issubclass_ = _issubclass_  # type: ignore[attr-defined]


def import_caikit_without_config_files() -> None:
    """Import caikit so that it does not read the files in ``CONFIG_FILES``.

    caikit 0.29 reads them at import, by rules of its own: a missing file or another ending than
    .yml is an AssertionError. They are Luthier's, whose loader reads them and says what is wrong;
    ``config/caikit_bridge.py`` hands caikit what it needs.
    """
    files = os.environ.pop("CONFIG_FILES", None)
    try:
        importlib.import_module("caikit")
    finally:
        if files is not None:
            os.environ["CONFIG_FILES"] = files


restore_numpy_issubclass()
import_caikit_without_config_files()
