"""A zip is read in place; one that would harm is refused."""

import io
import stat
import zipfile
from collections.abc import Mapping

import pytest

from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.formats.zip_archive import ZipArchive
from luthier.errors import InvalidInputError, NameNotAllowedError, TrainingDataError


def _zip(members: Mapping[str, bytes | str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer


def _open(file: io.BytesIO, **limits: int) -> ZipArchive:
    return ZipArchive(file, "z.zip", ("csv",), StreamLimits(**limits))


def _content(archive: ZipArchive, name: str, *, seekable: bool = False) -> bytes:
    with archive.opened(name, seekable=seekable) as member:
        return member.read()


def test_data_files_are_found_in_order_and_junk_is_not() -> None:
    members = {"b/x.csv": "2", "a.csv": "1", "__MACOSX/a.csv": "0", "b/.y.csv": "0", "r.md": "0"}
    archive = _open(_zip(members))
    assert archive.names == ["a.csv", "b/x.csv"]
    assert _content(archive, "b/x.csv") == b"2"
    assert _content(archive, "a.csv", seekable=True) == b"1"


@pytest.mark.parametrize("name", ["../a.csv", "/a.csv", "a/../../b.csv", "..\\a.csv", "C:\\a.csv"])
def test_a_name_that_leaves_the_archive_is_refused(name: str) -> None:
    with pytest.raises(NameNotAllowedError, match="leaves the archive"):
        _open(_zip({"ok.csv": "1", name: "2"}))


def test_a_symlink_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("link.csv")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(NameNotAllowedError, match="no regular file"):
        _open(buffer)


def test_a_bomb_is_stopped_while_it_unpacks() -> None:
    bomb = _zip({"a.csv": b"0" * 30_000_000})
    archive = _open(bomb, max_unpack_ratio=100)
    for seekable in (False, True):
        with pytest.raises(InvalidInputError, match="one packed byte becomes more than 100"):
            _content(archive, "a.csv", seekable=seekable)


def test_what_all_members_unpack_to_is_bounded_together() -> None:
    archive = _open(_zip({"a.csv": b"0" * 600, "b.csv": b"0" * 600}), max_unpacked_bytes=1000)
    _content(archive, "a.csv")
    with pytest.raises(InvalidInputError, match="unpacks to more than 1000 bytes"):
        _content(archive, "b.csv")
    with pytest.raises(InvalidInputError, match="unpacks to 600 bytes"):
        _open(_zip({"a.csv": b"0" * 600}), max_unpacked_bytes=500)


def test_a_zip_with_too_many_members_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="holds 3 files, at most 2"):
        _open(_zip({f"{n}.csv": "" for n in range(3)}), max_files=2)


def test_an_encrypted_member_is_refused() -> None:
    data = bytearray(_zip({"a.csv": "1"}).getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    with pytest.raises(InvalidInputError, match="encrypted"):
        _open(io.BytesIO(bytes(data)))


def test_what_is_no_zip_or_holds_no_data_is_refused() -> None:
    with pytest.raises(TrainingDataError, match=r"z\.zip is not a zip"):
        _open(io.BytesIO(b"PK nonsense"))
    with pytest.raises(TrainingDataError, match=r"holds no \.csv files"):
        _open(_zip({"a.txt": "1"}))


def test_a_damaged_member_is_refused() -> None:
    data = bytearray(_zip({"a.csv": bytes(range(256)) * 4}).getvalue())
    data[60:80] = b"\xff" * 20
    archive = _open(io.BytesIO(bytes(data)))
    with pytest.raises(TrainingDataError, match=r"z\.zip/a\.csv is damaged"):
        _content(archive, "a.csv")
