"""Leases on the base model that a saved or tuned model runs on."""

from __future__ import annotations

import os

from luthier.modules.environment import Environment
from luthier.resources.base_model import BaseModel
from luthier.resources.store import BaseModelLease

AnyPath = str | os.PathLike[str]
AnyBaseModel = str | os.PathLike[str] | BaseModel


def lease_base_model(
    base_model: AnyBaseModel,
    here: Environment,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
) -> BaseModelLease:
    """A lease on what a Python caller names or brings.

    Args:
        base_model: A name, a path anywhere, or a resource in memory.
        here: Whose store keeps the shared copy.
        dtype: Precision of what is named; None is the server's.
        quantization: How its weights are to be held; a resource in memory stays as it is.

    Returns:
        The lease; its owner releases it.
    """
    if isinstance(base_model, BaseModel):
        return BaseModelLease(base_model, here.base_models, None)
    return here.base_models.acquire(base_model, dtype=dtype, quantization=quantization)


def lease_saved_base_model(
    saved_name: str,
    brought: AnyBaseModel | None,
    here: Environment,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
) -> BaseModelLease:
    """A lease on the caller's base model, or on the one that a saved model names.

    That name is a stranger's: it may not reach beyond what the operator allows.

    Args:
        saved_name: From the saved model's config.
        brought: By the caller of ``load``, who may name any path.
        here: Whose store keeps the shared copy.
        dtype: Precision for the saved name; None is the server's.
        quantization: How the saved name's weights are to be held; None is as they are.

    Returns:
        The lease; its owner releases it.
    """
    if brought is not None:
        return lease_base_model(brought, here, quantization=quantization)
    return here.base_models.acquire(
        saved_name, dtype=dtype, quantization=quantization, from_request=True
    )
