"""A base model built again in another process around the same tensors, from plain data.

What goes over: the names of the classes, the configs as JSON, the tokenizer's files, and where each
tensor lies in shared memory. Nothing is pickled, and no weight is copied or read from disk.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.resources.quantised_layers import QuantisedLinear

_DESCRIPTION = "base_model.json"


def model_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a model holds: parameters, buffers and attributes of its modules.

    Args:
        model: Not changed.

    Yields:
        Names and tensors; tied ones under each of their names.
    """
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    yield from _attributes(model)


def describe_base_model(base_model: BaseModel, folder: Path) -> None:
    """Write all of a base model but its tensors.

    Args:
        base_model: Not changed.
        folder: Exists and is empty.

    Raises:
        NotSupportedError: If its classes cannot be found by name.
    """
    model = base_model.model
    config = model.config
    description = {
        "name": base_model.name,
        "kind": base_model.kind,
        "eos_token_ids": base_model.eos_token_ids,
        "pad_token_id": base_model.pad_token_id,
        "max_positions": base_model.max_positions,
        "quantization": base_model.quantization,
        "model_class": _path_of(type(model), base_model=base_model.name),
        "config_class": _path_of(type(config), base_model=base_model.name),
        "config": config.to_dict(),
        "attention": config._attn_implementation,
        "quantised": {
            path: (_path_of(type(layer), base_model=base_model.name), layer.settings())
            for path, layer in model.named_modules()
            if isinstance(layer, QuantisedLinear)
        },
        "modules": _modules_digest(model),
    }
    generation_config = getattr(model, "generation_config", None)
    if generation_config is not None:
        description["generation_config"] = generation_config.to_dict()
    (folder / _DESCRIPTION).write_text(json.dumps(description, default=str), encoding="utf-8")
    base_model.tokenizer.save_pretrained(folder)


def build_base_model(folder: Path, tensors: Mapping[str, torch.Tensor]) -> BaseModel:
    """The base model that ``describe_base_model`` wrote, around tensors that are in memory.

    Args:
        folder: What it wrote.
        tensors: What ``model_tensors`` gave, by name. Parameters are used as they are; the others,
            which some models write to, are copied.

    Returns:
        A frozen base model.

    Raises:
        NotSupportedError: If the model was changed after its class had built it, other than by
            ``quantise``, so that its class does not build it again.
    """
    description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    config = _class_at(description["config_class"]).from_dict(description["config"])
    config._attn_implementation = description["attention"]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # what is drawn here is replaced
        model = _class_at(description["model_class"])(config)
    for path, (kind, settings) in description["quantised"].items():
        model.set_submodule(path, _class_at(kind).empty(settings))
    _put(tensors, into=model)
    if _modules_digest(model) != description["modules"] or _has_gaps(model):
        raise NotSupportedError(
            f"base model {description['name']!r} was changed after it was built, so it cannot be "
            "built again in another process"
        )
    model.eval()
    if "generation_config" in description:
        model.generation_config = GenerationConfig.from_dict(description["generation_config"])
    return BaseModel(
        name=description["name"],
        kind=description["kind"],
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        eos_token_ids=tuple(description["eos_token_ids"]),
        pad_token_id=description["pad_token_id"],
        max_positions=description["max_positions"],
        quantization=description["quantization"],
    )


def _put(tensors: Mapping[str, torch.Tensor], *, into: PreTrainedModel) -> None:
    parameters: dict[int, nn.Parameter] = {}  # of tied weights there is one
    for prefix, module in into.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name in module._parameters:
            tensor = tensors.get(dot + name)
            if tensor is not None:
                new = parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
                module._parameters[name] = new
        for name in module._buffers:
            tensor = tensors.get(dot + name)
            if tensor is not None:
                module._buffers[name] = tensor.clone()
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and dot + name in tensors:
                vars(module)[name] = tensors[dot + name].clone()


def _attributes(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are neither parameters nor buffers, such as frequencies of some rotations."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield (f"{prefix}.{name}" if prefix else name), value


def _has_gaps(model: PreTrainedModel) -> bool:
    return any(tensor.is_meta for _, tensor in model_tensors(model))


def _modules_digest(model: PreTrainedModel) -> str:
    """Tells which class each module has."""
    lines = (
        f"{path} {type(module).__module__}.{type(module).__qualname__}"
        for path, module in model.named_modules()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _path_of(kind: type, *, base_model: str) -> str:
    path = f"{kind.__module__}:{kind.__qualname__}"
    try:
        is_found = _class_at(path) is kind
    except (ImportError, AttributeError):
        is_found = False
    if not is_found:
        raise NotSupportedError(
            f"base model {base_model!r} is of class {kind.__qualname__!r}, which cannot be found "
            f"in {kind.__module__!r}, so it cannot be built again in another process"
        )
    return path


def _class_at(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
