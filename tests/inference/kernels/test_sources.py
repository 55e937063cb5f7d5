from __future__ import annotations

from pathlib import Path

from luthier.inference.kernels.sources import fingerprint


def write(folder: Path, **contents: str) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_sources_are_told_apart_by_name_and_content(tmp_path: Path) -> None:
    same = (
        write(tmp_path / "a", norm_c="int x;", norm_h=""),
        write(tmp_path / "b", norm_h="", norm_c="int x;", notes_py="anything"),
    )
    others = (
        write(tmp_path / "c", norm_c="int y;", norm_h=""),
        write(tmp_path / "d", norm_c="int x;", norm_h="int y;"),
        write(tmp_path / "e", norm_c="", norm_h="int x;"),
        write(tmp_path / "f", norm_c="int x;"),
        write(tmp_path / "g", norn_c="int x;", norm_h=""),
    )
    assert fingerprint(same[0]) == fingerprint(same[1])
    assert len({fingerprint(folder) for folder in (same[0], *others)}) == len(others) + 1
