"""Keeps a folder of tokenized data below a number of bytes: what was not used for longest goes."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import alog

from luthier.files.atomic_folder import MANIFEST_NAME, PARTIAL_SUFFIX

log = alog.use_channel(__name__)

#: What ``content_key`` names a folder; nothing else is ever touched.
_KEY = re.compile(r"[0-9a-f]{64}")
#: A folder being written gets the name of its key, random digits and this suffix.
_PARTIAL = re.compile(rf"\.[0-9a-f]{{64}}-[0-9a-f]{{16}}{re.escape(PARTIAL_SUFFIX)}")
#: A folder being written is a dead one if nothing was written for so long.
_ABANDONED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class _Entry:
    folder: Path
    num_bytes: int
    last_used: float


def prune_cache(cache: Path, *, max_bytes: int, in_use: str) -> list[str]:
    """Delete tokenized data until what is left fits, and what writers left half-written.

    A training that still reads deleted data goes on: its files are mapped and live until it ends.

    Args:
        cache: Folder of folders that ``write_stored`` made; may hold others, which stay.
        max_bytes: Of all of them together.
        in_use: Key of what was used last. Stays, even if it alone is larger.

    Returns:
        Keys of what was deleted, oldest first.
    """
    _delete_abandoned(cache, now=time.time())
    entries = sorted(_entries(cache), key=lambda entry: (entry.last_used, entry.folder.name))
    total = sum(entry.num_bytes for entry in entries)
    deleted = []
    for entry in entries:
        if total <= max_bytes:
            break
        if entry.folder.name == in_use:
            continue
        if _delete(entry.folder):
            deleted.append(entry.folder.name)
            total -= entry.num_bytes
    if deleted:
        log.info("tokenized data was deleted from the cache: entries=%d", len(deleted))
    if total > max_bytes:
        log.warning("the tokenization cache is too small: bytes=%d max_bytes=%d", total, max_bytes)
    return deleted


def _entries(cache: Path) -> Iterator[_Entry]:
    for folder in cache.iterdir():
        if not _KEY.fullmatch(folder.name):
            continue
        try:
            sizes = [file.stat().st_size for file in folder.iterdir()]
            last_used = (folder / MANIFEST_NAME).stat().st_mtime
        except OSError:  # Somebody else deletes it at this moment.
            continue
        yield _Entry(folder, sum(sizes), last_used)


def _delete_abandoned(cache: Path, *, now: float) -> None:
    for folder in cache.iterdir():
        if not _PARTIAL.fullmatch(folder.name):
            continue
        try:
            written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:
            continue
        if now - written > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _delete(folder: Path) -> bool:
    """Take it out of sight in one step, so that no reader finds half of it."""
    aside = folder.parent / f".{folder.name}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
    try:
        folder.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True
