"""The earlier result that a training starts from instead of fresh numbers.

It is a training of its own: the optimizer, the schedule and the order of rows begin anew. To go on
with a training that was cut short is ``resume_from``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from luthier.adapters.base import Adapter
from luthier.adapters.caikit_archive import is_caikit_archive, read_caikit_archive
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import CONFIG_NAME, load_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, InvalidInputError, NotFoundError
from luthier.files.names import check_name, resolve_inside
from luthier.resources.base_model import BaseModel

#: Where a saved model and a checkpoint keep their adapter.
_ADAPTER_FOLDER = "adapter"
#: Options of LoRA that act while it is tuned and leave no trace in the result.
_TRAINING_ONLY = (
    "dropout",
    "lora_plus_ratio",
    "initialisation",
    "start_batches",
    "eva_rho",
    "eva_adjust_scaling",
    "eva_label_mask",
    "eva_whiten",
    "corda_method",
    "lora_ga_direction",
    "lora_ga_scale",
    "lora_ga_gamma",
)


def find_start(name: str, *, models_dir: Path, from_request: bool) -> Path:
    """The folder of an earlier result.

    Args:
        name: A saved model's folder, PEFT's folder, or a checkpoint; from a request, the id of a
            tuned model of this server.
        models_dir: Where those are.
        from_request: Whether somebody else chose the name.

    Returns:
        PEFT's folder, or one of caikit-nlp's.

    Raises:
        NotFoundError: If there is no such folder.
        ArtifactError: If it holds no adapter.
    """
    if from_request:
        check_name(name, what="start_from")
        folder = resolve_inside(models_dir, name, what="start_from")
    else:
        folder = Path(name).expanduser()
    if not folder.is_dir():
        raise NotFoundError(f"'start_from' {name[:200]!r}: there is no such model or folder")
    for place in (folder, folder / _ADAPTER_FOLDER):
        if (place / CONFIG_NAME).is_file():
            return place
    if is_caikit_archive(folder):
        return folder
    raise ArtifactError(
        f"'start_from' {name[:200]!r} holds no adapter; a whole model is gone on from as "
        "'base_model'"
    )


def read_start(
    folder: Path, base_model: BaseModel, *, method: str, num_virtual_tokens: int | None = None
) -> Adapter:
    """The adapter to go on from.

    Args:
        folder: From ``find_start``.
        base_model: What it will stand before.
        method: What is to be tuned.
        num_virtual_tokens: As was asked for; None for methods without.

    Returns:
        An adapter of the caller's own.

    Raises:
        ArtifactError: If it cannot be read or is for another base model.
        InvalidInputError: If it is of another method or size.
    """
    adapter: Adapter
    if is_caikit_archive(folder):
        adapter = read_caikit_archive(folder).make_adapter(base_model)
    else:
        adapter = load_adapter(folder, base_model=base_model)
    if adapter.method != method:
        raise InvalidInputError(
            f"'start_from' is the result of {adapter.method}, this training is {method}"
        )
    found = getattr(adapter, "num_virtual_tokens", None)
    if found != num_virtual_tokens:
        raise InvalidInputError(
            f"'start_from' has {found} virtual tokens, 'num_virtual_tokens' is {num_virtual_tokens}"
        )
    if method in (LoraAdapter.method, ClassificationHead.method):
        return adapter  # Read as it is learned.
    return adapter.to(device=base_model.device, dtype=torch.float32)


def read_lora_start(folder: Path, base_model: BaseModel, asked: LoraConfig) -> LoraAdapter:
    """The LoRA to go on from, with what only training looks at taken from the request.

    Args:
        folder: From ``find_start``.
        base_model: What it will stand beside.
        asked: The request's options; what is left at its default is not asked for.

    Returns:
        An adapter of the caller's own.

    Raises:
        ArtifactError: If it cannot be read or is for another base model.
        InvalidInputError: If it is of another method, or an option differs from the result's.
    """
    adapter = read_start(folder, base_model, method=LoraAdapter.method)
    assert isinstance(adapter, LoraAdapter)
    continue_lora(adapter, asked)
    return adapter


def continue_lora(adapter: LoraAdapter, asked: LoraConfig) -> None:
    """Take what only training looks at from a request.

    Args:
        adapter: An earlier result; changed in place.
        asked: The request's options; what is left at its default is not asked for.

    Raises:
        InvalidInputError: If an option differs from the result's.
    """
    for field in dataclasses.fields(LoraConfig):
        value, found = getattr(asked, field.name), getattr(adapter.config, field.name)
        is_asked = value != getattr(LoraConfig(), field.name)
        if field.name not in _TRAINING_ONLY and is_asked and value != found:
            raise InvalidInputError(
                f"'{field.name}' is {value!r:.80}, that of 'start_from' {found!r:.80}; leave it "
                "out, or start anew"
            )
    adapter.config = dataclasses.replace(
        adapter.config, dropout=asked.dropout, lora_plus_ratio=asked.lora_plus_ratio
    )
