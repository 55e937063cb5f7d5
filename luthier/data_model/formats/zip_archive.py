"""Files inside a zip, read in place: nothing is ever unpacked under a name from the archive."""

from __future__ import annotations

import io
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from luthier.data_model.formats.opening import StreamLimits, extension_of
from luthier.data_model.formats.row import shown
from luthier.errors import InvalidInputError, NameNotAllowedError, TrainingDataError

#: Members up to this size are kept in memory where a format must jump in the file.
_SPOOL_BYTES = 1 << 24
_COPY_BYTES = 1 << 20
#: What macOS and editors leave behind.
_JUNK_PARTS = ("__MACOSX", ".DS_Store")


class ZipArchive:
    """The data files of one zip.

    Args:
        file: The archive, seekable; must stay open as long as this is used.
        name: What messages call it.
        extensions: Endings of the files that count; others are left alone.
        limits: How many files, and how much they may unpack to.

    Raises:
        TrainingDataError: If it is no zip or holds no data file.
        NameNotAllowedError: For a member whose name leaves the archive, or a symlink.
        InvalidInputError: For encrypted members, too many, or a bomb.
    """

    def __init__(
        self, file: BinaryIO, name: str, extensions: tuple[str, ...], limits: StreamLimits
    ) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise TrainingDataError(f"{name} is not a zip: {shown(str(error))}") from error
        self._name = name
        self._limits = limits
        self._num_bytes_left = limits.max_unpacked_bytes
        entries = self._zip.infolist()
        if len(entries) > limits.max_files:
            raise InvalidInputError(
                f"{name} holds {len(entries)} files, at most {limits.max_files} are allowed"
            )
        for entry in entries:
            self._check(entry)
        self._entries = [
            entry
            for entry in sorted(entries, key=lambda entry: entry.filename)
            if not entry.is_dir() and not _is_junk(entry) and _extension(entry) in extensions
        ]
        if not self._entries:
            wanted = ", ".join(f".{extension}" for extension in extensions)
            raise TrainingDataError(f"{name} holds no {wanted} files")

    @property
    def names(self) -> list[str]:
        """The data files' names inside the archive, in order."""
        return [entry.filename for entry in self._entries]

    @contextmanager
    def opened(self, name: str, *, seekable: bool) -> Iterator[BinaryIO]:
        """The bytes of one data file, never more than the limits allow.

        Args:
            name: One of ``names``.
            seekable: Whether the reader must jump; costs a copy in memory or a nameless file.

        Yields:
            The unpacked bytes; closed at the end.

        Raises:
            InvalidInputError: As soon as more is unpacked than is allowed.
            TrainingDataError: For damaged members.
        """
        entry = next(entry for entry in self._entries if entry.filename == name)
        place = f"{self._name}/{name}"
        try:
            with self._zip.open(entry) as packed:
                member = io.BufferedReader(_Bounded(packed, self, entry, place), _COPY_BYTES)
                if not seekable:
                    yield member
                    return
                with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as copy:
                    while block := member.read(_COPY_BYTES):
                        copy.write(block)
                    copy.seek(0)
                    yield copy  # type: ignore[misc]  # a BinaryIO in all but name
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise TrainingDataError(f"{place} is damaged: {shown(str(error))}") from error

    def take(self, num_bytes: int, entry: zipfile.ZipInfo, num_read: int, place: str) -> None:
        """Count unpacked bytes against the limits.

        Args:
            num_bytes: Just unpacked.
            entry: Of which member.
            num_read: Unpacked of it so far.
            place: What messages call it.

        Raises:
            InvalidInputError: If it is too much.
        """
        self._num_bytes_left -= num_bytes
        if self._num_bytes_left < 0:
            raise InvalidInputError(
                f"{place}: the archive unpacks to more than {self._limits.max_unpacked_bytes} "
                "bytes, the most that are allowed"
            )
        if num_read > _COPY_BYTES + entry.compress_size * self._limits.max_unpack_ratio:
            raise InvalidInputError(
                f"{place}: one packed byte becomes more than {self._limits.max_unpack_ratio}, "
                "the most that are allowed"
            )

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
            raise NameNotAllowedError(f"{self._name}: {shown(name)} leaves the archive")
        mode = entry.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise NameNotAllowedError(f"{self._name}: {shown(name)} is no regular file")
        if entry.flag_bits & 0x1:
            raise InvalidInputError(f"{self._name}: {shown(name)} is encrypted")
        if entry.file_size > self._limits.max_unpacked_bytes:
            raise InvalidInputError(
                f"{self._name}: {shown(name)} unpacks to {entry.file_size} bytes, at most "
                f"{self._limits.max_unpacked_bytes} are allowed"
            )


class _Bounded(io.RawIOBase):
    """Unpacked bytes, counted as they come: what an archive says of its sizes may be a lie."""

    def __init__(
        self,
        packed: io.BufferedIOBase | object,
        archive: ZipArchive,
        entry: zipfile.ZipInfo,
        place: str,
    ) -> None:
        self._packed = packed
        self._archive = archive
        self._entry = entry
        self._place = place
        self._num_read = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Unpack the next bytes into ``buffer``; 0 at the end."""
        block: bytes = self._packed.read(len(buffer))  # type: ignore[union-attr]
        self._num_read += len(block)
        self._archive.take(len(block), self._entry, self._num_read, self._place)
        buffer[: len(block)] = block
        return len(block)


def _is_junk(entry: zipfile.ZipInfo) -> bool:
    parts = entry.filename.split("/")
    return any(part in _JUNK_PARTS for part in parts) or parts[-1].startswith(".")


def _extension(entry: zipfile.ZipInfo) -> str:
    return extension_of(entry.filename)
