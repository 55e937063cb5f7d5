"""A folder that is complete or invisible, and the manifest that proves it complete.

parent/
  .model-7f3a….partial/   being written; a crash leaves it, nobody reads it
  model/                  renamed here in one step after every file reached the disk
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import ArtifactError, ConflictError
from luthier.files.names import is_inside

PARTIAL_SUFFIX = ".partial"
MANIFEST_NAME = "manifest.json"
#: A folder with one of these was written by ``write_manifest`` or is a PEFT adapter.
_OWN_NAMES = frozenset({MANIFEST_NAME, "adapter_config.json"})
_MODULE_CONFIG_NAME = "config.yml"
_MODULE_CONFIG_BYTES = 1 << 20


@contextmanager
def write_folder_atomically(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into; on leaving, it becomes ``target``.

    If the body raises, nothing remains. Files and folders are fsynced before the rename, so what
    is visible survives a power cut.

    Args:
        target: Where the folder shall be; its parents are made.
        overwrite: Replace an existing ``target`` that is empty or holds a saved model, adapter or
            checkpoint: it is moved aside just before the rename and deleted after it, so a crash
            may leave none under this name but never a mixture.

    Yields:
        The empty folder, beside ``target``.

    Raises:
        ConflictError: If ``target`` exists and ``overwrite`` is False, or it holds anything else.
    """
    target = Path(os.path.abspath(target))
    _refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name[:100]}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
    partial.mkdir()
    try:
        yield partial
        fsync_tree(partial)
        _refuse_existing(target, overwrite=overwrite)
        _move_into_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_replaceable(target: Path) -> None:
    """Refuse a folder that overwriting would not take, before work is put into what goes there.

    Args:
        target: A folder to be written; it need not exist.

    Raises:
        ConflictError: If something else is there than an empty folder or a saved model.
    """
    if os.path.lexists(target) and not _may_be_replaced(target):
        raise ConflictError(
            f"{target.name!r} in {target.parent.name!r} is neither an empty folder nor a saved "
            "model, so it is not replaced; name another folder"
        )


def write_file_atomically(target: Path, content: bytes) -> None:
    """Replace one file in one step: written beside, fsynced, renamed."""
    partial = target.parent / f".{target.name[:100]}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        fsync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_manifest(folder: Path, **facts: object) -> None:
    """Write ``manifest.json``: size and SHA-256 of every other file in ``folder``.

    Args:
        folder: Complete but for the manifest.
        **facts: JSON values to keep beside them, by their own key.
    """
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    text = json.dumps({"format": 1, **facts, "files": files}, indent=2)
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def check_manifest(folder: Path) -> dict[str, Any]:
    """Compare the files that ``manifest.json`` lists; without a manifest nothing is checked.

    Args:
        folder: What the manifest lies in.

    Returns:
        The manifest, or an empty dictionary.

    Raises:
        ArtifactError: Naming the first file that is missing or differs.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return {}
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        expected = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{MANIFEST_NAME} in {folder.name!r} is not readable") from error
    for name, (num_bytes, digest) in expected.items():
        file = folder / name
        if not is_inside(file, folder) or not file.is_file():
            raise ArtifactError(f"{folder.name!r} is incomplete: {name!r} is missing")
        if file.stat().st_size != num_bytes or _sha256(file) != digest:
            raise ArtifactError(f"{folder.name!r} is damaged: {name!r} differs from its manifest")
    return manifest


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if overwrite:
        require_replaceable(target)
    elif os.path.lexists(target):
        raise ConflictError(f"{target.name!r} already exists in {target.parent.name!r}")


def _may_be_replaced(target: Path) -> bool:
    """Whether a folder is empty or recognisably one of ours, PEFT's or caikit's.

    A user who saves into their home or a project's folder must not lose it.
    """
    if not target.is_dir():
        return False
    names = os.listdir(target)
    if not names or not _OWN_NAMES.isdisjoint(names):
        return True
    config = target / _MODULE_CONFIG_NAME
    return config.is_file() and b"module_id:" in config.read_bytes()[:_MODULE_CONFIG_BYTES]


def _move_into_place(partial: Path, target: Path) -> None:
    old = None
    if os.path.lexists(target):
        old = target.parent / f".{target.name[:100]}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
        target.rename(old)
    partial.rename(target)
    fsync(target.parent)
    if old is not None:
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink()


def fsync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it is on the disk; links are not followed."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            fsync(path)
    fsync(folder)


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
