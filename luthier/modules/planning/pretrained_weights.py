"""The weights that full fine-tuning starts from in place of the base model's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from luthier.adapters.added_tokens import AddedTokens
from luthier.adapters.full_weights import FullWeights
from luthier.errors import ArtifactError, NameNotAllowedError, NotFoundError
from luthier.files.names import check_name, is_inside, resolve_inside
from luthier.files.weight_file import read_weights
from luthier.modules.environment import Environment
from luthier.resources.base_model import BaseModel
from luthier.resources.names import resolve_base_model

_WHAT = "pretrained_weights"


def find_weights(name: str, here: Environment, *, from_request: bool) -> tuple[Path, ...]:
    """The files that a name stands for; reads none of them.

    Args:
        name: A file with weights, or the folder of a whole model; from a request, the id of a
            tuned model of this server, or what lies below ``base_models_dir``.
        here: Says where those are.
        from_request: Whether somebody else chose the name.

    Returns:
        One file, or all those of a whole model; no symbolic links.

    Raises:
        NameNotAllowedError: If a request's name or a link leads out of what the operator allows.
        NotFoundError: If there is nothing of that name.
        LuthierError: If it is a folder and holds no whole model.
    """
    path = _below(name, here) if from_request else Path(name).expanduser()
    files = _files_of(Path(os.path.realpath(path)), name, here)
    roots = (*_roots(here), here.models_dir)
    if from_request and not all(_is_below(file, roots) for file in files):
        raise _not_allowed(name)
    return files


def full_weights(
    base_model: BaseModel,
    files: Sequence[Path],
    *,
    is_shared_out: bool,
    added: AddedTokens | None = None,
) -> FullWeights:
    """A copy of all weights of a base model, with those of some files in their places.

    Args:
        base_model: Its network is copied.
        files: From ``find_weights``; none leaves all as they are.
        is_shared_out: Whether processes will share the weights out.
        added: Tokens that the copy's vocabulary gets beside the base model's.

    Returns:
        What is learned.

    Raises:
        LuthierError: If a file cannot be read or does not fit.
    """
    # What is borrowed is not written into.
    adapter = FullWeights(base_model.model, is_shared_out=is_shared_out and not files)
    if files:
        adapter.load(_read_all(files), source=files[0].name)
    if added is not None:
        adapter.add_tokens(added)
    return adapter


def _read_all(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in read_weights(file).items():
            if name in weights:
                raise ArtifactError(f"{file.name!r} holds {name[:120]!r}, as another file does")
            weights[name] = tensor
    return weights


def _roots(here: Environment) -> tuple[Path, ...]:
    """Folders in which a request may name absolute paths, as for base models."""
    sources = here.base_models.sources
    base_models = () if sources.base_models_dir is None else (sources.base_models_dir,)
    return (*base_models, *sources.allowed_roots)


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(is_inside(path, root) for root in roots)


def _below(name: str, here: Environment) -> Path:
    """Where a request's name points."""
    if os.path.isabs(name):
        if len(name) > 4096 or "\0" in name or not _is_below(Path(name), _roots(here)):
            raise _not_allowed(name)
        return Path(name)
    check_name(name, what=_WHAT)
    base_models_dir = here.base_models.sources.base_models_dir
    for folder in (here.models_dir, base_models_dir):
        if folder is not None and os.path.lexists(folder / name):
            return resolve_inside(folder, name, what=_WHAT)
    raise NotFoundError(
        f"'{_WHAT}' {name[:200]!r}: there is no such tuned model, nor a file or folder of that "
        "name below 'base_models_dir'"
    )


def _files_of(path: Path, name: str, here: Environment) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise NotFoundError(f"'{_WHAT}' {name[:200]!r}: there is no such file or folder")
    folder = resolve_base_model(path, here.base_models.sources, from_request=False).path
    files = tuple(Path(os.path.realpath(file)) for file in sorted(folder.glob("*.safetensors")))
    if not files:
        raise NotFoundError(f"'{_WHAT}' {name[:200]!r}: that model has no safetensors")
    return files


def _not_allowed(name: str) -> NameNotAllowedError:
    return NameNotAllowedError(
        f"'{_WHAT}' {name[:80]!r}: a request may only name a tuned model of this server, or what "
        "lies below 'base_models_dir'"
    )
