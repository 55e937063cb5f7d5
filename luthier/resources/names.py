"""From the name of a base model to the place where its weights are."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import alog
import httpx
import yaml
from huggingface_hub import snapshot_download

from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    ConfigError,
    NameNotAllowedError,
    NotSupportedError,
)
from luthier.files.names import check_name, is_inside, resolve_inside

log = alog.use_channel(__name__)

PACKAGE_PREFIX = "package:"
_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.gguf")
_HUB_CODE_FILES = ("*.py",)


@dataclass(frozen=True)
class BaseModelSources:
    """Where base models may come from and how they are loaded; server-level settings.

    Args:
        base_models_dir: Folder whose subfolders are base models by name; None for none.
        allowed_roots: Further folders in which a request may name absolute paths.
        allow_downloads: Look names up on the Hugging Face hub as the last resort.
        allow_pickle_weights: Read ``.bin`` weights too (tensors only, nothing is executed).
        trust_remote_code: Run code that a model folder brings. Never settable by a request.
        default_dtype: dtype word where a caller names none.
        default_device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the best present.
        cache_dir: Where dequantised GGUF models are kept; None is ``~/.cache/luthier`` (or
            ``$XDG_CACHE_HOME/luthier``).
        shares_memory: Hold weights on the CPU in memory that other processes can map.
    """

    base_models_dir: Path | None = None
    allowed_roots: tuple[Path, ...] = ()
    allow_downloads: bool = False
    allow_pickle_weights: bool = False
    trust_remote_code: bool = False
    default_dtype: str = "float32"
    default_device: str = "cpu"
    cache_dir: Path | None = None
    shares_memory: bool = False

    def __post_init__(self) -> None:
        if self.base_models_dir is not None and not Path(self.base_models_dir).is_dir():
            raise ConfigError(f"'base_models_dir' is not a folder: {str(self.base_models_dir)!r}")


@dataclass(frozen=True)
class BaseModelLocation:
    """Where a base model was found.

    Args:
        name: The shortest name that finds it again, never a local path.
        path: A folder in Hugging Face format, or one GGUF file.
        source: ``path``, ``base_models_dir``, ``package``, ``cache`` or ``hub``.
    """

    name: str
    path: Path
    source: Literal["path", "base_models_dir", "package", "cache", "hub"]

    @property
    def is_gguf(self) -> bool:
        """True if ``path`` is a GGUF file."""
        return self.path.suffix == ".gguf"


def resolve_base_model(
    name: str | os.PathLike[str], sources: BaseModelSources, *, from_request: bool
) -> BaseModelLocation:
    """Find a base model by name: path, ``base_models_dir``, package, Hugging Face cache, hub.

    Args:
        name: A name below ``base_models_dir``, a path, ``package:<module>`` or a hub id.
        sources: Where to look.
        from_request: True if somebody else chose the name: paths are then confined to the
            allowed roots and ``base_models_dir``, symbolic links included.

    Returns:
        Where it is. For ``package:`` and the cache nothing is loaded or run yet; only the hub is
        downloaded from.

    Raises:
        NameNotAllowedError: If the name is malformed or leaves the allowed roots.
        BaseModelNotFoundError: Saying where it was looked for.
        NotSupportedError: If the folder holds an adapter or a tuned prompt, no base model.
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else name
    if isinstance(text, str) and text.startswith(PACKAGE_PREFIX):
        return _in_package(text)
    location = _at_path(text, sources, from_request=from_request) or _in_base_models_dir(
        text, sources
    )
    if location is None:
        location = _from_hub(check_name(text, what="base model"), sources)
    return location


def _at_path(
    text: str, sources: BaseModelSources, *, from_request: bool
) -> BaseModelLocation | None:
    if not isinstance(text, str) or not text or "\0" in text:
        raise NameNotAllowedError(f"base model must be a name or a path, got {text!r}")
    if from_request:
        if not os.path.isabs(text):
            check_name(text, what="base model")
            return None
        _refuse_outside_roots(text, sources)
    path = Path(os.path.realpath(Path(text).expanduser()))
    if os.path.isabs(text) or text.startswith((".", "~")):
        # NOTE: os.path, because Path.exists raises for a name that is too long for the system.
        if not os.path.exists(path):
            raise BaseModelNotFoundError(
                f"base model {text[:200]!r}: there is no such folder or file"
            )
    elif not _holds_model(path):
        # A plain name that happens to be a folder here, say "models", may still mean another.
        return None
    # The weights of a saved module are found again by the module's name.
    name = path.parent.name if path.name == "artifacts" else path.name
    return _located(name, path, "path")


def _holds_model(path: Path) -> bool:
    return path.suffix == ".gguf" or any(
        os.path.isfile(path / name) for name in ("config.json", "config.yml")
    )


def _refuse_outside_roots(text: str, sources: BaseModelSources) -> None:
    roots = [*sources.allowed_roots]
    if sources.base_models_dir is not None:
        roots.append(sources.base_models_dir)
    if len(text) > 4096 or not any(is_inside(Path(text), root) for root in roots):
        raise NameNotAllowedError(
            f"base model {text[:80]!r}: a request may only name paths under the allowed roots"
        )


def _in_base_models_dir(text: str, sources: BaseModelSources) -> BaseModelLocation | None:
    root = sources.base_models_dir
    if root is None:
        return None
    name = check_name(text, what="base model")
    path = Path(os.path.realpath(root / name))
    if not any(is_inside(path, allowed) for allowed in (root, *sources.allowed_roots)):
        raise NameNotAllowedError(
            f"base model {name!r} is a link out of 'base_models_dir'; add its target to the "
            "allowed roots or copy it"
        )
    return _located(name, path, "base_models_dir") if path.exists() else None


def _in_package(text: str) -> BaseModelLocation:
    module = text.removeprefix(PACKAGE_PREFIX)
    if not _MODULE_NAME.fullmatch(module):
        raise NameNotAllowedError(f"base model {text[:80]!r}: 'package:' wants one module name")
    # NOTE: find_spec of a top-level name reads metadata only; the package's code never runs.
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise BaseModelNotFoundError(f"base model {text!r}: no Python package {module!r} installed")
    files = sorted(Path(folders[0]).glob("*.gguf"))
    if len(files) != 1:
        raise BaseModelNotFoundError(
            f"base model {text!r}: package {module!r} holds {len(files)} GGUF files, need exactly 1"
        )
    return BaseModelLocation(text, files[0], "package")


def _from_hub(name: str, sources: BaseModelSources) -> BaseModelLocation:
    patterns = [*_HUB_FILES, *(_HUB_CODE_FILES if sources.trust_remote_code else ())]
    looked_in = [f"base_models_dir ({sources.base_models_dir or 'not set'})"]
    for allow_network in (False, True) if sources.allow_downloads else (False,):
        try:
            folder = snapshot_download(
                name, allow_patterns=patterns, local_files_only=not allow_network
            )
        except (OSError, ValueError, httpx.HTTPError) as error:
            # NOTE: missing, gated and offline are OSErrors in huggingface_hub, bad ids ValueErrors.
            looked_in.append("the Hugging Face hub" if allow_network else "the Hugging Face cache")
            log.debug("base model not on hub side: %s", type(error).__name__)
            continue
        return _located(name, Path(folder), "hub" if allow_network else "cache")
    hint = (
        "" if sources.allow_downloads else "; ALLOW_DOWNLOADS=true would try the Hugging Face hub"
    )
    raise BaseModelNotFoundError(
        f"base model {name!r} was not found: looked in {', '.join(looked_in)}{hint}"
    )


def _located(
    name: str, path: Path, source: Literal["path", "base_models_dir", "cache", "hub"]
) -> BaseModelLocation:
    if path.is_file():
        if path.suffix != ".gguf":
            raise BaseModelNotFoundError(
                f"base model {name!r}: a single file must be GGUF, got {path.name!r}"
            )
        return BaseModelLocation(name, path, source)
    if (path / "config.json").is_file():
        if (path / "adapter_config.json").exists():
            raise NotSupportedError(f"base model {name!r} holds an adapter of another base model")
        return BaseModelLocation(name, path, source)
    if (path / "config.yml").is_file():
        return BaseModelLocation(name, _whole_model_of_module(name, path), source)
    if (path / "adapter_config.json").exists():
        raise NotSupportedError(f"base model {name!r} is an adapter, not a base model")
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return BaseModelLocation(name, files[0], source)
    raise BaseModelNotFoundError(
        f"base model {name!r}: its folder holds neither config.json nor exactly one GGUF file"
    )


def _whole_model_of_module(name: str, folder: Path) -> Path:
    """The weights inside a saved TextGeneration module, which may be tuned further."""
    try:
        config = yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArtifactError(f"base model {name!r}: its config.yml is not YAML") from error
    artifacts = config.get("artifact_path") if isinstance(config, dict) else None
    if artifacts is None:
        raise NotSupportedError(
            f"base model {name!r} is a saved model without weights of its own (a tuned prompt?)"
        )
    path = resolve_inside(folder, artifacts, what="'artifact_path'", max_parts=2)
    if not (path / "config.json").is_file():
        raise ArtifactError(f"base model {name!r}: {artifacts!r} holds no config.json")
    return path
