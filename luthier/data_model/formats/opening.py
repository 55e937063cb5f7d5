"""Which files may be read, how much of them, and opening them without being tricked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from luthier.data_model.formats.row import shown
from luthier.errors import InvalidInputError, NameNotAllowedError

#: A JSON array must be read whole; larger data belongs into JSON lines, CSV or parquet.
MAX_JSON_ARRAY_BYTES = 1 << 30
MAX_PATH_CHARS = 4096
DEFAULT_MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class StreamLimits:
    """What a source of train records may read. All but ``data_roots`` belong to training.limits.

    Args:
        data_roots: Folders that files must lie in, symlinks resolved; None allows every file (a
            Python caller reads with its own rights anyway), an empty tuple none.
        max_rows: Most records of one source.
        max_row_chars: Longest line, CSV cell or block of plain text, in characters.
        max_json_bytes: Largest JSON array, which is held in memory whole.
        max_files: Most files of a folder or zip.
        max_unpacked_bytes: Most bytes that the files of one zip may unpack to.
        max_unpack_ratio: Most bytes that one packed byte may become; a bomb is far above.
    """

    data_roots: tuple[Path, ...] | None = None
    max_rows: int = DEFAULT_MAX_ROWS
    max_row_chars: int = 1 << 26
    max_json_bytes: int = MAX_JSON_ARRAY_BYTES
    max_files: int = 10_000
    max_unpacked_bytes: int = 1 << 34
    max_unpack_ratio: int = 1000


def allowed_path(name: str, limits: StreamLimits) -> Path:
    """The real path behind a name, symlinks resolved and confined to the roots.

    Args:
        name: Absolute or relative; below ``limits.data_roots`` if those are given.
        limits: Which folders count.

    Returns:
        An absolute path without symlinks; without roots it need not exist.

    Raises:
        NameNotAllowedError: If the name is malformed or lies in none of the roots.
    """
    if not name or "\0" in name or len(name) > MAX_PATH_CHARS:
        raise NameNotAllowedError(f"{shown(name)} is not a file name")
    if limits.data_roots is None:
        return Path(name).expanduser().resolve()
    for root in limits.data_roots:
        real_root = root.resolve()
        path = (real_root / name).resolve()
        if path.is_relative_to(real_root) and path.exists():
            return path
    raise NameNotAllowedError(
        f"{shown(name)} is in none of the folders that the server's 'data_roots' allow"
        if limits.data_roots
        else f"{shown(name)} cannot be read: the server's 'data_roots' allows no files"
    )


def files_of(folder: Path, extensions: tuple[str, ...], limits: StreamLimits) -> list[Path]:
    """The files directly in a folder that end in one of the extensions, by name.

    Args:
        folder: As ``allowed_path`` gave it.
        extensions: Lower case, without the dot. Upper-case endings count too.
        limits: ``max_files`` counts.

    Returns:
        At least one path.

    Raises:
        InvalidInputError: If there is none, or there are too many.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if extension_of(path.name) in extensions and not path.name.startswith(".")
    )
    if not files:
        wanted = ", ".join(f".{extension}" for extension in extensions)
        raise InvalidInputError(f"directory {shown(folder.name)} holds no {wanted} files")
    if len(files) > limits.max_files:
        raise InvalidInputError(
            f"directory {shown(folder.name)} holds {len(files)} files, at most "
            f"{limits.max_files} are allowed"
        )
    return files


def extension_of(name: str) -> str:
    """The lower-case ending of a file name, without the dot.

    Args:
        name: A file name or path.

    Returns:
        The ending, or "".

    Example:
        >>> extension_of("a/Rows.CSV"), extension_of("rows")
        ('csv', '')
    """
    return Path(name).suffix.removeprefix(".").lower()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open what was checked and nothing else: no symlink put there since, no pipe that blocks.

    Args:
        path: As ``allowed_path`` gave it.

    Yields:
        The file's bytes; closed at the end.

    Raises:
        InvalidInputError: If the file cannot be read or is no regular file.
        NameNotAllowedError: If it was replaced by a symlink meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInputError(f"cannot read {shown(str(path))}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInputError(f"{shown(path.name)} is not a regular file")
        if path.resolve() != path:
            raise NameNotAllowedError(f"{shown(path.name)} was replaced while it was opened")
        yield file
