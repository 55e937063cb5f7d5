"""The base model that a training asks for."""

from __future__ import annotations

import copy
import os

import alog
from transformers import AutoConfig

from luthier.data_model.options.quantisation import NONE
from luthier.errors import (
    ArtifactError,
    InvalidInputError,
    NotSupportedError,
)
from luthier.modules.environment import Environment
from luthier.modules.leasing import AnyBaseModel
from luthier.modules.planning.hooks import TrainingHooks
from luthier.resources.base_model import BaseModel, BaseModelKind, kind_of
from luthier.resources.hardware import pick_training_dtype
from luthier.resources.names import BaseModelLocation, resolve_base_model

log = alog.use_channel(__name__)


def describe_base_model(
    base_model: AnyBaseModel, environment: Environment, hooks: TrainingHooks
) -> tuple[str, BaseModelKind]:
    """Name and kind of a base model, from its config alone.

    Args:
        base_model: As the caller gave it.
        environment: Where names are looked up.
        hooks: Say whose training it is.

    Returns:
        The name that finds it again, and ``causal`` or ``seq2seq``.

    Raises:
        LuthierError: If there is no such base model here, or it generates nothing.
    """
    if isinstance(base_model, BaseModel):
        return base_model.name, base_model.kind
    if not isinstance(base_model, str | os.PathLike):
        raise InvalidInputError(
            f"'base_model' must be a name, a path or a BaseModel, got {type(base_model).__name__}"
        )
    in_memory = environment.base_models.in_memory(os.fspath(base_model))
    if in_memory is not None:
        return in_memory.name, in_memory.kind
    sources = environment.base_models.sources
    location = resolve_base_model(base_model, sources, from_request=hooks.from_request)
    return location.name, _kind_at(location, trust_remote_code=sources.trust_remote_code)


def _kind_at(location: BaseModelLocation, *, trust_remote_code: bool) -> BaseModelKind:
    if location.is_gguf:
        return "causal"  # all that GGUF is read as
    try:
        config = AutoConfig.from_pretrained(
            location.path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"base model {location.name!r}: config.json is not usable: {error}"
        ) from error
    return kind_of(config, name=location.name)


def spelling_of(base_model: AnyBaseModel) -> str:
    """A base model's name as the caller wrote it."""
    return base_model.name if isinstance(base_model, BaseModel) else os.fspath(base_model)


def in_dtype(base_model: BaseModel, requested: str | None) -> BaseModel:
    """A resource in memory, or its copy in another precision: others may be using it as it is.

    Args:
        base_model: The resource.
        requested: Word of a dtype; None keeps its own.

    Returns:
        The base model to train on.

    Raises:
        NotSupportedError: If it is quantised and so has no copy in another precision.
    """
    if requested is None:
        return base_model
    dtype = pick_training_dtype(requested, device=base_model.device)
    if dtype == base_model.dtype:
        return base_model
    if base_model.quantization != NONE:
        raise NotSupportedError(
            f"base model {base_model.name!r} in memory is quantised and computes in "
            f"{base_model.dtype}; it has no copy in {dtype}"
        )
    log.info("base model %s is copied to train in %s", base_model.name, dtype)
    model = copy.deepcopy(base_model.model).to(dtype)
    return BaseModel.from_memory(model, base_model.tokenizer, name=base_model.name)
