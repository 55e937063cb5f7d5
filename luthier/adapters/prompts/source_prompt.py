"""Source prompts: what multitask prompt tuning learned on other tasks, to start a new one from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.errors import (
    ArtifactError,
    InvalidInputError,
    NameNotAllowedError,
    NotFoundError,
)
from luthier.files.names import resolve_inside
from luthier.files.tensor_files import read_tensors, require_finite

SUFFIXES = (".safetensors", ".bin", ".pt")
_KEYS = {"prompt_embeddings": 2, "prefix_task_cols": 3, "prefix_task_rows": 3}


@dataclass(frozen=True)
class SourcePrompt:
    """The tensors of PEFT's multitask prompt tuning, in float32.

    Args:
        name: Of the file, for messages.
        prompt_embeddings: Shared by the source tasks, [N·P, D].
        task_columns: [tasks, N·P, R], or None if the file holds none.
        task_rows: [tasks, R, D], or None likewise.
    """

    name: str
    prompt_embeddings: torch.Tensor
    task_columns: torch.Tensor | None = None
    task_rows: torch.Tensor | None = None


def resolve_source_prompt(
    name: str, *, source_prompt_base: Path | None, from_request: bool = True
) -> Path:
    """The file of a source prompt.

    Args:
        name: Relative to ``source_prompt_base``; an absolute path only if not ``from_request``.
        source_prompt_base: The operator's folder of source prompts, or None.
        from_request: True if somebody else chose the name.

    Returns:
        A file that exists.

    Raises:
        NameNotAllowedError: If the name is malformed, leaves the folder, or has another suffix.
        InvalidInputError: If the server has no folder of source prompts.
        NotFoundError: If there is no such file.
    """
    if not isinstance(name, str) or not name.endswith(SUFFIXES):
        raise NameNotAllowedError(
            f"source prompt {str(name)[:80]!r} must end with one of {', '.join(SUFFIXES)}"
        )
    if not from_request and os.path.isabs(name):
        path = Path(name)
    elif source_prompt_base is None:
        raise InvalidInputError(
            f"source prompt {name[:80]!r}: this server has no 'source_prompt_base' to look in"
        )
    else:
        path = resolve_inside(Path(source_prompt_base), name, what="source prompt")
    if not path.is_file():
        raise NotFoundError(f"source prompt {name[:80]!r} does not exist under source_prompt_base")
    return path


def read_source_prompt(path: Path) -> SourcePrompt:
    """Read a source prompt from safetensors or from a torch file (tensors only).

    Args:
        path: From ``resolve_source_prompt``.

    Returns:
        Its tensors, checked and in float32.

    Raises:
        UnsafeWeightsError: If the file asks for anything but tensors.
        ArtifactError: If it is corrupt, lacks ``prompt_embeddings``, or holds NaN.
    """
    tensors = read_tensors(path)
    if "prompt_embeddings" not in tensors:
        raise ArtifactError(
            f"source prompt {path.name!r} has no 'prompt_embeddings', only {sorted(tensors)[:5]}"
        )
    found: dict[str, torch.Tensor] = {}
    for key, num_dimensions in _KEYS.items():
        if key in tensors:
            tensor = tensors[key]
            if tensor.ndim != num_dimensions or not tensor.is_floating_point():
                raise ArtifactError(
                    f"source prompt {path.name!r}: {key!r} must be float numbers in "
                    f"{num_dimensions} dimensions, got {tensor.dtype} {list(tensor.shape)}"
                )
            require_finite(tensor, what=f"source prompt {path.name!r}: {key!r}")
            found[key] = tensor.float()
    return SourcePrompt(
        name=path.name,
        prompt_embeddings=found["prompt_embeddings"],
        task_columns=found.get("prefix_task_cols"),
        task_rows=found.get("prefix_task_rows"),
    )
