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
from transformers import PreTrainedTokenizerBase

from luthier.adapters.added_tokens import NO_TOKENS, grown_tokenizer
from luthier.adapters.base import Adapter
from luthier.adapters.heads.building import read_head
from luthier.adapters.heads.classification_head import require_labels
from luthier.adapters.heads.peft_format import TASK_TYPE as CLASSIFICATION_TASK
from luthier.adapters.lora.building import read_lora
from luthier.adapters.lora.peft_format import PEFT_TYPE as LORA_TYPE
from luthier.adapters.prompts.key_values import prefix_shape_of
from luthier.adapters.prompts.prefix_tuning import PREFIX_TUNING_TYPE
from luthier.adapters.prompts.prompt_reading import PROMPT_TYPES, read_prefix, read_prompt
from luthier.adapters.prompts.soft_prompt import PEFT_TASK_TYPES
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError, UnsafeWeightsError
from luthier.files.atomic_folder import check_manifest, write_folder_atomically, write_manifest
from luthier.files.tensor_files import read_safetensors, require_finite

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1_000_000
#: In the manifest: text and id of each token that the adapter adds to the vocabulary.
_ADDED_KEY = "added_tokens"
_PEFT_TYPES = (*PROMPT_TYPES, PREFIX_TUNING_TYPE, LORA_TYPE)


def save_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base_model_name: str,
    overwrite: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write an adapter as a PEFT folder that is complete or absent.

    Args:
        adapter: What to save; its tensors are copied to the CPU.
        folder: Where; its parents are made.
        base_model_name: The name that finds the base model again. Of a path only the last part is
            written, so no folder of this machine leaks.
        overwrite: Replace ``folder`` if it is there.
        tokenizer: Of the base model. Where the adapter adds tokens, the tokenizer that has them is
            written too, for users of PEFT; it is never read here.

    Raises:
        ConflictError: If ``folder`` exists and ``overwrite`` is False.
        NotSupportedError: If the method gives no adapter (full fine-tuning).
    """
    config = {**adapter.peft_config(), "base_model_name_or_path": _without_path(base_model_name)}
    state = {name: t.detach().cpu().contiguous() for name, t in adapter.peft_state().items()}
    with write_folder_atomically(folder, overwrite=overwrite) as partial:
        # Of rank and alpha patterns the first that fits counts, so their order stays.
        text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
        (partial / CONFIG_NAME).write_text(text, encoding="utf-8")
        save_file(state, partial / WEIGHTS_NAME, metadata={"format": "pt"})
        (partial / "README.md").write_text(_readme(adapter, config), encoding="utf-8")
        about = {
            "method": adapter.method,
            "content_hash": adapter.content_hash(),
            "task_id": getattr(adapter, "task_id", 0),
        }
        if adapter.class_labels:
            about["labels"] = list(adapter.class_labels)
        added = adapter.added_tokens()
        if added:
            about[_ADDED_KEY] = dict(added)
        if added and tokenizer is not None:
            grown_tokenizer(tokenizer, added).save_pretrained(partial)
        write_manifest(partial, adapter=about)


def load_adapter(folder: Path, *, base_model: BaseModel) -> Adapter:
    """Read an adapter from a PEFT folder, ours or PEFT's own, onto the base model's device.

    Nothing that the config names is imported or fetched.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_model: What the adapter will stand before.

    Returns:
        The adapter, in the dtype it was saved in.

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
    if config.get("task_type") == CLASSIFICATION_TASK:
        return _read_head(folder, config, about.get("labels"), base_model)
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
            added_ids = _read_added(about.get(_ADDED_KEY), folder, base_model)
            return read_lora(config, state, base_model.model, added_ids=added_ids)
        if peft_type == PREFIX_TUNING_TYPE:
            shape = prefix_shape_of(base_model)
            prefix = read_prefix(config, state, kind=base_model.kind, shape=shape)
            return prefix.placed_on(base_model.device)
        adapter = read_prompt(
            config,
            state,
            kind=base_model.kind,
            hidden_size=base_model.hidden_size,
            method=about.get("method"),
            task_id=about.get("task_id", 0),
        )
    except InvalidInputError as error:
        raise ArtifactError(f"adapter {folder.name!r}: {error}") from error
    return adapter.to(device=base_model.device, dtype=state["prompt_embeddings"].dtype)


def read_adapter_files(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a PEFT folder holds, as it stands there.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The config, and the tensors by PEFT's names.

    Raises:
        ArtifactError: If files are missing, corrupt or damaged, or hold NaN.
        UnsafeWeightsError: If the weights are a pickle.
    """
    check_manifest(folder)
    return _read_config(folder), _read_state(folder)


def _read_head(
    folder: Path, config: Mapping[str, Any], labels: object, base_model: BaseModel
) -> Adapter:
    if labels is not None and not isinstance(labels, list):
        raise ArtifactError(f"adapter {folder.name!r}: 'labels' must be a list of names")
    try:
        if labels is not None:
            require_labels(labels)
        return read_head(config, _read_state(folder), base_model.model, labels=labels)
    except InvalidInputError as error:
        raise ArtifactError(f"adapter {folder.name!r}: {error}") from error


def _read_added(given: object, folder: Path, base_model: BaseModel) -> Mapping[str, int]:
    """Text and id of the tokens that an adapter adds to the vocabulary."""
    if given is None:
        return NO_TOKENS
    ids = list(given.values()) if isinstance(given, dict) else []
    # A tokenizer gives new tokens the ids after its last; a table has a number for each.
    end = max(base_model.vocab_size, len(base_model.tokenizer)) + len(ids)
    is_id = [isinstance(each, int) and 0 <= each < end for each in ids]
    if not ids or not all(is_id) or len(set(ids)) < len(ids):
        raise ArtifactError(
            f"adapter {folder.name!r}: {_ADDED_KEY!r} must map texts to ids of their own below "
            f"{end}, got {given!r:.80}"
        )
    assert isinstance(given, dict)
    return given


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


def _without_path(name: str) -> str:
    is_path = name.startswith(("/", "./", "../", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_path else name


def _readme(adapter: Adapter, config: Mapping[str, Any]) -> str:
    base = config["base_model_name_or_path"]
    needs, model, classes = "", "base_model", ""
    added = adapter.added_tokens()
    if added:
        needs = "\n# It reads tokens that the base model lacks; it has learned to write none.\n"
        needs += "# tokenizer: AutoTokenizer.from_pretrained(folder)\n"
        needs += f"rows = max({max(added.values()) + 1}, "
        needs += "base_model.get_input_embeddings().num_embeddings)\n"
        needs += "base_model.resize_token_embeddings(rows)\n"
    if adapter.class_labels:
        needs = "from transformers import AutoModelForSequenceClassification\n\n"
        needs += "classifier = AutoModelForSequenceClassification.from_pretrained(\n"
        needs += f"    {json.dumps(base)}, num_labels={len(adapter.class_labels)}\n)\n"
        model = "classifier"
        named = ", ".join(json.dumps(label) for label in adapter.class_labels)
        classes = f"\nClasses, in order: {named}\n"
    return (
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n\n"
        f"# An adapter for {base}\n\n"
        f"Tuned by Luthier with {adapter.method.replace('_', ' ')}. Load it in Luthier, or with "
        "PEFT:\n\n"
        f"```python\nfrom peft import PeftModel\n{needs}\n"
        f"model = PeftModel.from_pretrained({model}, folder)\n```\n{classes}"
    )
