"""Names and relative paths that come from outside, checked in one place."""

from __future__ import annotations

import os
import re
from pathlib import Path

from luthier.errors import NameNotAllowedError

MAX_NAME_CHARS = 255
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_\-])?")
_DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul"] + [f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)]
)


def check_name(name: object, *, what: str = "name", max_parts: int = 4) -> str:
    """Return ``name`` if it can name something below a folder on any system.

    Allowed are up to ``max_parts`` parts joined by single slashes. A part holds ASCII letters,
    digits, ``_``, ``-`` and ``.``; it neither starts with a dot or hyphen nor ends with a dot.
    Percent signs, backslashes, control characters and look-alikes of other alphabets never pass,
    so no later decoding can turn an allowed name into another.

    Args:
        name: What the caller sent.
        what: What it names, for the message: ``"base model"``, ``"model name"``.
        max_parts: 1 for a plain name, more where ``org/name`` is meant.

    Returns:
        ``name``, unchanged.

    Raises:
        NameNotAllowedError: Naming ``what`` and the value (its start, if it is long).

    Example:
        >>> check_name("HuggingFaceTB/SmolLM2-135M", what="base model")
        'HuggingFaceTB/SmolLM2-135M'
    """
    if not isinstance(name, str) or not name:
        raise NameNotAllowedError(f"{what} must be a non-empty string, got {_shown(name)}")
    if len(name) > MAX_NAME_CHARS:
        raise NameNotAllowedError(
            f"{what} has {len(name)} characters, at most {MAX_NAME_CHARS} are allowed: "
            f"{_shown(name)}"
        )
    parts = name.split("/")
    if len(parts) > max_parts:
        raise NameNotAllowedError(
            f"{what} {_shown(name)} has {len(parts)} parts, at most {max_parts} are allowed"
        )
    for part in parts:
        if not _PART.fullmatch(part) or part.split(".")[0].lower() in _DEVICE_NAMES:
            raise NameNotAllowedError(
                f"{what} {_shown(name)} is not allowed: use letters, digits, '_', '-' and '.', "
                f"{'parts joined by single slashes, ' if max_parts > 1 else ''}no '..'"
            )
    return name


def is_inside(path: Path, root: Path) -> bool:
    """True if ``path``, with every symbolic link followed, lies in ``root`` or is it."""
    real_root = os.path.realpath(root)
    real_path = os.path.realpath(path)
    return real_path == real_root or real_path.startswith(real_root.rstrip(os.sep) + os.sep)


def resolve_inside(root: Path, name: str, *, what: str = "name", max_parts: int = 4) -> Path:
    """The real path of ``name`` below ``root``; it need not exist.

    Args:
        root: The folder that must not be left.
        name: Relative to it, as for ``check_name``.
        what: What it names, for the message.
        max_parts: As for ``check_name``.

    Returns:
        An absolute path without symbolic links.

    Raises:
        NameNotAllowedError: If the name is malformed or a symbolic link leads out of ``root``.
    """
    path = Path(os.path.realpath(root / check_name(name, what=what, max_parts=max_parts)))
    if not is_inside(path, root):
        raise NameNotAllowedError(f"{what} {_shown(name)} leads out of the folder it belongs to")
    return path


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else text[:77] + "..."
