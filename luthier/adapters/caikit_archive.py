"""Models that caikit-nlp 0.5 saved: prompt tuned ones and whole ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from luthier.adapters.prompts.soft_prompt import BaseModelKind, PromptPlace, SoftPrompt
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError
from luthier.files.names import check_name, resolve_inside
from luthier.files.tensor_files import require_finite
from luthier.files.torch_files import read_torch_tensor

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel

CONFIG_NAME = "config.yml"
PEFT_PROMPT_TUNING_ID = "6655831b-960a-4dc5-8df4-867026e2cd41"
TEXT_GENERATION_ID = "f9181353-4ccf-4572-bd1e-f12bcda26792"
#: What caikit-nlp writes into every config, and Luthier into none.
_VERSION_KEY = "caikit_nlp_version"
_MAX_CONFIG_BYTES = 4_000_000
_MAX_LOG_BYTES = 256_000_000
_KINDS: dict[str, BaseModelKind] = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}


@dataclass(frozen=True)
class CaikitArchive:
    """What a model that caikit-nlp saved holds, as plain data.

    Args:
        folder: Where it is.
        content: ``soft_prompt`` (module PeftPromptTuning) or ``whole_model`` (TextGeneration).
        base_model_name: Last part of the base's path, to be looked up under ``base_models_dir``;
            None for a whole model, which is its own base.
        artifacts: The folder with a whole model's weights and tokenizer, else None.
        kind: Of the base of a soft prompt; None for a whole model, whose config.json says it.
        decoder: Virtual tokens before a causal model, [P, D], else None. For multitask prompt
            tuning it is the product, so it acts as a plain prompt.
        encoder: Virtual tokens before a seq2seq encoder, [P, D], else None.
        verbalizer: Template that ran before the tokenizer; None for a whole model.
        tuning_type: ``PROMPT_TUNING`` or ``MULTITASK_PROMPT_TUNING``; None for a whole model.
        torch_dtype: dtype word it was trained or saved in, without ``torch.``.
        eos_token: Text of the token that ends a generation.
        training_logs: Lines of ``training_logs.jsonl``, parsed.
    """

    folder: Path
    content: Literal["soft_prompt", "whole_model"]
    base_model_name: str | None = None
    artifacts: Path | None = None
    kind: BaseModelKind | None = None
    decoder: torch.Tensor | None = None
    encoder: torch.Tensor | None = None
    verbalizer: str | None = None
    tuning_type: str | None = None
    torch_dtype: str = "float32"
    eos_token: str | None = None
    training_logs: list[dict[str, Any]] = field(default_factory=list)

    def make_adapter(self, base_model: BaseModel) -> SoftPrompt:
        """The soft prompt, on the base model's device.

        Args:
            base_model: Found by ``base_model_name``.

        Returns:
            A soft prompt that acts as the saved one did.

        Raises:
            ArtifactError: If there is none or it does not fit the base model.
        """
        prompts: list[tuple[PromptPlace, torch.Tensor]] = []
        for place, tensor in (("encoder", self.encoder), ("decoder", self.decoder)):
            if tensor is not None:
                prompts.append((place, tensor))  # type: ignore[arg-type]
        shapes = {tuple(tensor.shape) for _, tensor in prompts}
        if len(shapes) != 1 or self.kind != base_model.kind:
            raise ArtifactError(
                f"{self.folder.name!r} holds no soft prompt for a {base_model.kind} base model"
            )
        try:
            adapter = SoftPrompt(
                torch.cat([tensor for _, tensor in prompts]),
                kind=base_model.kind,
                places=tuple(place for place, _ in prompts),
            )
        except InvalidInputError as error:
            raise ArtifactError(f"{self.folder.name!r}: {error}") from error
        if adapter.hidden_size != base_model.hidden_size:
            raise ArtifactError(
                f"{self.folder.name!r} has virtual tokens of size {adapter.hidden_size}, "
                f"base model {base_model.name!r} has hidden size {base_model.hidden_size}"
            )
        return adapter.to(device=base_model.device, dtype=adapter.prompt_embeddings.dtype)


def is_caikit_archive(folder: Path) -> bool:
    """True if caikit-nlp, not Luthier, saved the model in ``folder``; False if unreadable."""
    try:
        return _VERSION_KEY in _read_config(folder)
    except ArtifactError:
        return False


def read_caikit_archive(folder: Path) -> CaikitArchive:
    """Read a model that caikit-nlp saved. No absolute path in it is ever followed.

    Args:
        folder: Holds ``config.yml``.

    Returns:
        Everything it holds, as plain data; tensors on the CPU.

    Raises:
        ArtifactError: If it is incomplete, corrupt, or holds NaN.
        UnsafeWeightsError: If a prompt file asks for anything but tensors.
        NotSupportedError: If another module saved it.
        NameNotAllowedError: If a file name in it leaves the folder.
    """
    config = _read_config(folder)
    module_id = config.get("module_id")
    logs = _read_logs(folder, config)
    if module_id == PEFT_PROMPT_TUNING_ID:
        return _read_prompt(folder, config, logs)
    if module_id == TEXT_GENERATION_ID:
        return CaikitArchive(
            folder=folder,
            content="whole_model",
            artifacts=_existing(folder, config, "artifact_path"),
            torch_dtype=_text(config, "torch_dtype", "float32").removeprefix("torch."),
            eos_token=config.get("eos_token"),
            training_logs=logs,
        )
    raise NotSupportedError(
        f"{folder.name!r} was saved by module {str(module_id)[:80]!r}; known are PeftPromptTuning "
        "and TextGeneration"
    )


def _read_prompt(
    folder: Path, config: Mapping[str, Any], logs: list[dict[str, Any]]
) -> CaikitArchive:
    kind = _KINDS.get(_text(config, "task_type", ""))
    if kind is None:
        raise ArtifactError(f"{folder.name!r}: 'task_type' must be one of {sorted(_KINDS)}")
    tensors = {
        place: _read_virtual_tokens(_existing(folder, config, place))
        for place in ("DECODER", "ENCODER")
        if config.get(place)
    }
    if not tensors:
        raise ArtifactError(f"{folder.name!r} names neither a DECODER nor an ENCODER file")
    base_model_name = check_name(
        config.get("base_model_name"), what="'base_model_name'", max_parts=1
    )
    return CaikitArchive(
        folder=folder,
        content="soft_prompt",
        base_model_name=base_model_name,
        kind=kind,
        decoder=tensors.get("DECODER"),
        encoder=tensors.get("ENCODER"),
        verbalizer=_text(config, "verbalizer", "{{input}}"),
        tuning_type=_text(config, "tuning_type", "PROMPT_TUNING"),
        torch_dtype=_text(config, "trained_torch_dtype", "float32").removeprefix("torch."),
        eos_token=config.get("eos_token"),
        training_logs=logs,
    )


def _read_virtual_tokens(path: Path) -> torch.Tensor:
    tensor = read_torch_tensor(path)
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ArtifactError(
            f"{path.name!r} holds {tensor.dtype} {list(tensor.shape)}, not a prompt"
        )
    require_finite(tensor, what=f"{path.name!r}")
    return tensor


def _existing(folder: Path, config: Mapping[str, Any], key: str) -> Path:
    path = resolve_inside(folder, _text(config, key, ""), what=repr(key), max_parts=2)
    if not path.exists():
        raise ArtifactError(f"{folder.name!r} is incomplete: {path.name!r} is missing")
    return path


def _text(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise ArtifactError(f"{key!r} in {CONFIG_NAME} must be text, got {str(value)[:80]!r}")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ArtifactError(f"{CONFIG_NAME} of {folder.name!r} is too large")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ArtifactError(f"{folder.name!r} has no readable {CONFIG_NAME}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{CONFIG_NAME} of {folder.name!r} is not a mapping")
    return config


def _read_logs(folder: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the training log. A model saved twice names one that is gone: then none."""
    name = config.get("training_logs")
    if not name:
        return []
    path = resolve_inside(folder, name, what="'training_logs'", max_parts=2)
    if not path.is_file():
        return []
    if path.stat().st_size > _MAX_LOG_BYTES:
        raise ArtifactError(f"the training log of {folder.name!r} exceeds {_MAX_LOG_BYTES} bytes")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the training log of {folder.name!r} is damaged") from error
