"""Folders that appear, change and vanish as a whole, whatever happens in between."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import uuid
from pathlib import Path

from luthier.files.atomic_folder import fsync, fsync_tree

#: Names that start like this are never models; half-made and dying folders have them.
HIDDEN_PREFIX = "."

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_folder(staged: Path, final: Path) -> None:
    """Move a finished folder to its final place, replacing what is there.

    A reader of ``final`` sees the old folder or the new one, never a mixture. Both must be on one
    file system.

    Args:
        staged: The finished folder; gone afterwards.
        final: Where it shall be. Its parent is made if need be.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    fsync_tree(staged)
    if not final.exists():
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _replace(staged, final)
    else:
        _replace(staged, final)
    fsync(final.parent)


def remove_folder(folder: Path) -> None:
    """Take a folder away at once, then delete its files.

    Args:
        folder: Must exist.
    """
    dying = folder.with_name(f"{HIDDEN_PREFIX}removed-{uuid.uuid4().hex}")
    folder.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)


def _replace(staged: Path, final: Path) -> None:
    """Swap the two in one step where the system can, else in two, then delete the old one."""
    if not _exchange(staged, final):
        aside = final.with_name(f"{HIDDEN_PREFIX}replaced-{uuid.uuid4().hex}")
        final.rename(aside)
        staged.rename(final)
        staged = aside
    shutil.rmtree(staged, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's renameat2 with RENAME_EXCHANGE; False where it is not to be had."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))
