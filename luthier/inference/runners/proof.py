"""What a runner does about networks that may not be made for packed rows: try, compare, refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luthier.errors import LuthierError, NotSupportedError
from luthier.resources.base_model import BaseModel

#: What a network of another design may say to what it does not expect.
_FOREIGN_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def refusing(base_model: BaseModel) -> Iterator[None]:
    """Turn what a network fails with, when it is tried, into a refusal; our own errors stay.

    Args:
        base_model: Whose network is tried.

    Raises:
        NotSupportedError: If the network fails.
    """
    try:
        yield
    except LuthierError:
        raise
    except _FOREIGN_ERRORS as error:
        raise NotSupportedError(
            f"base model {base_model.name!r} does not run packed rows: {error}"
        ) from error


def require_same(base_model: BaseModel, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Refuse a model whose logits on packed rows are others than its own.

    Args:
        base_model: It.
        got: On packed rows.
        expected: By the model's own code, of the same shape.

    Raises:
        NotSupportedError: If they differ by more than rounding.
    """
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    if not difference < max(1e-3, 16 * torch.finfo(base_model.dtype).eps):
        raise NotSupportedError(
            f"packed rows give base model {base_model.name!r} other logits than its own: they "
            f"differ by {difference:.2g} of their size"
        )
