"""The only patches of third parties. Each says which version needs it and why.

Importing this module applies them; it must happen before the first ``import caikit``.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _issubclass_(arg1: Any, arg2: Any) -> bool:
    return isinstance(arg1, type) and issubclass(arg1, arg2)


def restore_numpy_issubclass() -> None:
    """Give numpy >= 2 back ``np.issubclass_``, which caikit 0.29's pydantic_wrapper calls."""
    if not hasattr(np, "issubclass_"):
        np.issubclass_ = _issubclass_  # type: ignore[attr-defined]


restore_numpy_issubclass()
