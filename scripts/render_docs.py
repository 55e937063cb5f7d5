"""Write the parts of the documentation that the code knows best.

    python -m scripts.render_docs            write docs/settings.md and docs/errors.md
    python -m scripts.render_docs --check    exit 1 if what is committed differs

docs/settings.md: the tables between the markers come from config.yml, the schema, the training
options and the tables of other systems; the text around them is written by hand. docs/errors.md:
all of it, from the error classes and the table in runtime/errors.py.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from luthier.config.caikit_keys import CAIKIT_KEYS
from luthier.config.loader import DEFAULTS_FILE
from luthier.config.schema import Config
from luthier.config.settings import all_settings, fields_of, is_level
from luthier.config.values import bounds_of, type_name
from luthier.errors import LuthierError
from luthier.runtime.errors import status_of
from scripts.render_training_docs import other_systems, training_options

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "docs" / "settings.md"
ERRORS = ROOT / "docs" / "errors.md"

_KEY_LINE = re.compile(r"(?P<indent> *)(?P<name>[\w.]+):(?P<value>.*)")


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    stale = [path for path, text in rendered().items() if not _holds(path, text)]
    for path in stale:
        print(f"{'stale' if arguments.check else 'wrote'} {path.relative_to(ROOT)}")
    if arguments.check:
        return 1 if stale else 0
    for path in stale:
        path.write_text(rendered()[path], encoding="utf-8")
    return 0


def rendered() -> dict[Path, str]:
    """The documents as they should be."""
    settings = SETTINGS.read_text(encoding="utf-8")
    for name, lines in (
        ("server settings", server_settings()),
        ("caikit settings", caikit_settings()),
        ("training options", training_options()),
        ("other systems", other_systems()),
    ):
        settings = between_markers(settings, name, "\n".join(lines))
    return {SETTINGS: settings, ERRORS: "\n".join(errors()) + "\n"}


def between_markers(document: str, name: str, text: str) -> str:
    """The document with ``text`` between the markers called ``name``.

    Raises:
        ValueError: If the markers are not there, once and in order.
    """
    begin, end = f"<!-- begin: {name} (generated) -->", f"<!-- end: {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"the markers of {name!r} must stand once")
    before, rest = document.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def server_settings() -> Iterator[str]:
    """One table per top-level part of config.yml."""
    comments = config_comments(DEFAULTS_FILE.read_text(encoding="utf-8"))
    current = None
    for setting in sorted(all_settings(), key=lambda each: _place(each.path)):
        is_part = is_level(fields_of(Config)[setting.path[0]])
        part = f"`{setting.path[0]}`" if is_part else "Top level"
        if part != current:
            current = part
            yield from ("", f"### {part}", "")
            yield from _table_head("Key", "Default", "Allowed", "Variable", "Meaning")
        default, meaning = comments[setting.key]
        yield _row(
            f"`{setting.key}`",
            f"`{default}`",
            _allowed(setting.annotation),
            f"`{setting.env_name}`",
            meaning,
        )
    yield ""


def _place(path: tuple[str, ...]) -> int:
    """Order of the parts: first the keys at the top, then the levels as config.yml has them."""
    names = list(fields_of(Config))
    return names.index(path[0]) + 1 if is_level(fields_of(Config)[path[0]]) else 0


def _allowed(annotation: Any) -> str:
    checks = [str(check) for check in bounds_of(annotation)]
    kind = type_name(annotation)
    return "; ".join(checks if checks and kind == "str" else [kind, *checks])


def config_comments(text: str) -> dict[str, tuple[str, str]]:
    """Key to (default as written, the comment above it) for every key of config.yml."""
    found: dict[str, tuple[str, str]] = {}
    comment: list[str] = []
    levels: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY_LINE.match(line)
        if match:
            indent = len(match["indent"])
            levels = [*(each for each in levels if each[0] < indent), (indent, match["name"])]
            key = ".".join(name for _, name in levels)
            default = match["value"].strip() or "{__default__: -1}"
            found[key] = (default, " ".join(comment))
        comment = []
    return found


def caikit_settings() -> Iterator[str]:
    """The table of caikit's keys that are not Luthier's."""
    yield from _table_head("caikit's key", "In a file", "What holds instead")
    for entry in sorted(CAIKIT_KEYS, key=lambda each: each.key):
        effect = "refused" if entry.is_refused else "left out, with a warning"
        yield _row(f"`{entry.key}`", effect, entry.advice)


def errors() -> Iterator[str]:
    """All of docs/errors.md."""
    yield from (
        "# Errors",
        "",
        "Made by `make docs` from `luthier/errors.py` and `luthier/runtime/errors.py`; not edited",
        "by hand.",
        "",
        "Every error that Luthier raises on purpose has a class and a stable code word. The code",
        "stands in logs, in the gRPC trailer `luthier-error-code` and in the HTTP body",
        '`{"details": "...", "code": 404, "id": "...", "error": "model_not_found"}`. In Python',
        "each class is a built-in error too. Anything else that goes wrong is a bug of ours:",
        "INTERNAL, 500, with an id that the server's log has beside the traceback.",
        "",
    )
    yield from _table_head("Class", "Code", "gRPC", "HTTP", "Is also", "Meaning")
    for depth, kind in _tree(LuthierError, 0):
        status = status_of(kind)
        built_in = next(
            (base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), ""
        )
        meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        name = f"{'&nbsp;&nbsp;' * depth}`{kind.__name__}`"
        yield _row(name, f"`{kind.code}`", status.grpc.name, str(status.http), built_in, meaning)


def _tree(kind: type[LuthierError], depth: int) -> Iterator[tuple[int, type[LuthierError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == LuthierError.__module__:
            yield from _tree(child, depth + 1)


def _table_head(*names: str) -> Iterable[str]:
    return (_row(*names), _row(*("---" for _ in names)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(cell: str) -> str:
    """A cell whose bars and angle brackets are text."""
    cell = cell.replace("|", "\\|")
    return cell if "&nbsp;" in cell else cell.replace("<", "&lt;")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
