"""Adapters in PEFT's folder format: plain PEFT loads ours, and its own load here.

folder/
  adapter_config.json         PEFT's config; never a local path
  adapter_model.safetensors   PEFT's state
  README.md                   what it is and how PEFT loads it
  manifest.json               size and SHA-256 of each file; what PEFT's config cannot say
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from luthier.adapters.base import Adapter
from luthier.adapters.lora_building import read_lora
from luthier.adapters.lora_peft import PEFT_TYPE as LORA_TYPE
from luthier.adapters.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.soft_prompt import (
    MAX_VIRTUAL_TOKENS,
    PEFT_TASK_TYPES,
    PromptPlace,
    SoftPrompt,
    check_prompt,
)
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError, UnsafeWeightsError
from luthier.files.atomic_folder import check_manifest, write_folder_atomically, write_manifest
from luthier.files.tensor_files import read_safetensors, require_finite

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1_000_000
_PROMPT_KEY = "prompt_embeddings"
_MULTITASK_KEYS = frozenset({_PROMPT_KEY, "prefix_task_cols", "prefix_task_rows"})
_PROMPT_TYPES = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "LUTHIER_DECODER_PROMPT_TUNING")
_PEFT_TYPES = (*_PROMPT_TYPES, LORA_TYPE)


def save_adapter(
    adapter: Adapter, folder: Path, *, base_model_name: str, overwrite: bool = False
) -> None:
    """Write an adapter as a PEFT folder that is complete or absent.

    Args:
        adapter: What to save; its tensors are copied to the CPU.
        folder: Where; its parents are made.
        base_model_name: The name that finds the base model again. Of a path only the last part is
            written, so no folder of this machine leaks.
        overwrite: Replace ``folder`` if it is there.

    Raises:
        ConflictError: If ``folder`` exists and ``overwrite`` is False.
        NotSupportedError: If the method gives no adapter (full fine-tuning).
    """
    config = {**adapter.peft_config(), "base_model_name_or_path": _without_path(base_model_name)}
    state = {name: t.detach().cpu().contiguous() for name, t in adapter.peft_state().items()}
    with write_folder_atomically(folder, overwrite=overwrite) as partial:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_NAME).write_text(text, encoding="utf-8")
        save_file(state, partial / WEIGHTS_NAME, metadata={"format": "pt"})
        (partial / "README.md").write_text(_readme(adapter, config), encoding="utf-8")
        about = {
            "method": adapter.method,
            "content_hash": adapter.content_hash(),
            "task_id": getattr(adapter, "task_id", 0),
        }
        write_manifest(partial, adapter=about)


def load_adapter(folder: Path, *, base_model: BaseModel) -> Adapter:
    """Read an adapter from a PEFT folder, ours or PEFT's own, onto the base model's device.

    Nothing that the config names is imported or fetched.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_model: What the adapter will stand before.

    Raises:
        ArtifactError: If files are missing, corrupt, damaged, hold NaN or do not fit each other
            or the base model.
        UnsafeWeightsError: If the weights are a pickle.
        NotSupportedError: If the tuning method is one that is not offered.
    """
    about = check_manifest(folder).get("adapter", {})
    config = _read_config(folder)
    peft_type = config.get("peft_type")
    if peft_type not in _PEFT_TYPES:
        raise NotSupportedError(
            f"adapter {folder.name!r} is of type {str(peft_type)[:80]!r}; known are "
            f"{', '.join(_PEFT_TYPES)}"
        )
    # PEFT's LoRA may leave the task open; a soft prompt cannot.
    is_open = peft_type == LORA_TYPE and config.get("task_type") is None
    if not is_open and config.get("task_type") != PEFT_TASK_TYPES[base_model.kind]:
        raise ArtifactError(
            f"adapter {folder.name!r} is for task type {str(config.get('task_type'))[:80]!r}, base "
            f"model {base_model.name!r} is {PEFT_TASK_TYPES[base_model.kind]!r}"
        )
    state = _read_state(folder)
    try:
        if peft_type == LORA_TYPE:
            return read_lora(config, state, base_model.model)
        _require_prompt(state)
        adapter = _build(config, state, base_model=base_model, about=about)
    except InvalidInputError as error:
        raise ArtifactError(f"adapter {folder.name!r}: {error}") from error
    dtype = state[_PROMPT_KEY].dtype
    return adapter.to(device=base_model.device, dtype=dtype)


def _build(
    config: Mapping[str, Any],
    state: dict[str, torch.Tensor],
    *,
    base_model: BaseModel,
    about: Mapping[str, Any],
) -> SoftPrompt | MultitaskSoftPrompt:
    kind = base_model.kind
    num_virtual_tokens = _positive_int(config, "num_virtual_tokens", MAX_VIRTUAL_TOKENS)
    # PEFT's default: a seq2seq model has two stacks, whether or not both get virtual tokens.
    default_places = 2 if kind == "seq2seq" else 1
    num_places = (
        default_places
        if config.get("num_transformer_submodules") is None
        else _positive_int(config, "num_transformer_submodules", default_places)
    )
    prompt = state[_PROMPT_KEY]
    if list(prompt.shape) != [num_virtual_tokens * num_places, base_model.hidden_size]:
        raise InvalidInputError(
            f"its prompt is {list(prompt.shape)}, must be "
            f"{[num_virtual_tokens * num_places, base_model.hidden_size]}: {num_virtual_tokens} "
            f"virtual tokens in {num_places} place(s), hidden size of {base_model.name!r}"
        )
    check_prompt(prompt, num_places=num_places)
    places = _places(config, num_places, kind=kind)
    if config["peft_type"] == "PROMPT_TUNING":
        # PEFT puts the first rows before the encoder and the rest nowhere.
        return SoftPrompt(prompt[:num_virtual_tokens], kind=kind, places=places[:1])
    columns, rows = state.get("prefix_task_cols"), state.get("prefix_task_rows")
    if columns is None or rows is None:
        raise InvalidInputError(f"its weights lack {sorted(_MULTITASK_KEYS - state.keys())}")
    if about.get("method") == SoftPrompt.method and _are_ones(columns) and _are_ones(rows):
        return SoftPrompt(prompt, kind=kind, places=places)
    task_id = about.get("task_id", 0)
    if isinstance(task_id, bool) or not isinstance(task_id, int):
        raise InvalidInputError("'task_id' in its manifest is no number")
    return MultitaskSoftPrompt(prompt, columns, rows, kind=kind, places=places, task_id=task_id)


def _places(config: Mapping[str, Any], num_places: int, *, kind: str) -> tuple[PromptPlace, ...]:
    if kind == "causal" or config["peft_type"] == "LUTHIER_DECODER_PROMPT_TUNING":
        return ("decoder",)
    return ("encoder", "decoder")[:num_places]  # type: ignore[return-value]


def _positive_int(config: Mapping[str, Any], key: str, maximum: int) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise InvalidInputError(f"{key!r} must be from 1 to {maximum}, got {str(value)[:80]!r}")
    return value


def _are_ones(tensor: torch.Tensor) -> bool:
    return bool((tensor == 1).all())


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        config = json.loads(content.decode("utf-8")) if len(content) <= _MAX_CONFIG_BYTES else None
    except FileNotFoundError as error:
        raise ArtifactError(f"adapter {folder.name!r} has no {CONFIG_NAME}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{CONFIG_NAME} of {folder.name!r} is not readable JSON") from error
    if not isinstance(config, dict):
        raise ArtifactError(
            f"{CONFIG_NAME} of {folder.name!r} is no JSON object of at most "
            f"{_MAX_CONFIG_BYTES} bytes"
        )
    return config


def _read_state(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        pickles = [
            file.name for suffix in ("bin", "pt", "pkl") for file in folder.glob(f"*.{suffix}")
        ]
        if pickles:
            raise UnsafeWeightsError(
                f"adapter {folder.name!r}: {pickles[0]} is a pickle. Convert it with 'python -m "
                "luthier.resources.convert_weights OLD_FOLDER NEW_FOLDER'"
            )
        raise ArtifactError(f"adapter {folder.name!r} has no {WEIGHTS_NAME}")
    state = read_safetensors(path)
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ArtifactError(f"adapter {folder.name!r}: {name!r} holds {tensor.dtype}")
        require_finite(tensor, what=f"adapter {folder.name!r}: {name!r}")
    return state


def _require_prompt(state: Mapping[str, torch.Tensor]) -> None:
    if _PROMPT_KEY not in state or not state.keys() <= _MULTITASK_KEYS:
        raise InvalidInputError(
            f"its weights must be {_PROMPT_KEY!r} (and those of multitask prompt tuning), "
            f"got {sorted(state)[:5]}"
        )


def _without_path(name: str) -> str:
    is_path = name.startswith(("/", "./", "../", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_path else name


def _readme(adapter: Adapter, config: Mapping[str, Any]) -> str:
    base = config["base_model_name_or_path"]
    return (
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n\n"
        f"# An adapter for {base}\n\n"
        f"Tuned by Luthier with {adapter.method.replace('_', ' ')}. Load it in Luthier, or with "
        "PEFT:\n\n"
        "```python\nfrom peft import PeftModel\n\n"
        "model = PeftModel.from_pretrained(base_model, folder)\n```\n"
    )
