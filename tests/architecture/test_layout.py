"""tests/ mirrors luthier/, file for file."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Source files without a test of their own, and why. This list may only shrink.
WITHOUT_TEST: dict[str, str] = {}


def mirrored_test(source: Path) -> Path:
    """Where the test of a source file belongs."""
    folder = ROOT / "tests" / source.relative_to(ROOT / "luthier").parent
    return folder / f"test_{source.stem.strip('_')}.py"


def sources() -> list[Path]:
    """Every source file that has something to test: of the __init__ files only the topmost."""
    top = ROOT / "luthier" / "__init__.py"
    found = (ROOT / "luthier").rglob("*.py")
    return sorted(path for path in found if path.name != "__init__.py" or path == top)


def test_every_source_file_has_its_test():
    missing = {
        str(source.relative_to(ROOT)): str(mirrored_test(source).relative_to(ROOT))
        for source in sources()
        if not mirrored_test(source).is_file()
    }
    assert {source: test for source, test in missing.items() if source not in WITHOUT_TEST} == {}


def test_no_exception_outlives_its_reason():
    stale = [
        source
        for source in WITHOUT_TEST
        if not (ROOT / source).is_file() or mirrored_test(ROOT / source).is_file()
    ]
    assert stale == []


def test_init_files_of_packages_hold_no_logic():
    """What is in an __init__ file has no test of its own, so it may only import and say names."""
    too_long = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "luthier").rglob("__init__.py")
        if path.parent.name != "luthier" and "\ndef " in path.read_text(encoding="utf-8")
    ]
    assert too_long == []


def test_test_folders_have_no_init_files():
    """With importlib mode an __init__ file would make tests of one name shadow each other."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
