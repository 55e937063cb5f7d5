"""Check documented arguments against signatures with pydoclint, section by section.

    python scripts/check_docstrings.py luthier

pydoclint wants every section as soon as one is there. Here a docstring has the sections that say
more than the signature (CONTRIBUTING.md), so what pydoclint misses counts only if the section that
it would stand in exists: an ``Args:`` that is there must name every argument, in order.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

#: pydoclint's codes for something that is missing, and the section it would stand in.
SECTION_OF_CODE = {
    "DOC101": "Args:",
    "DOC103": "Args:",
    "DOC201": "Returns:",
    "DOC402": "Yields:",
    "DOC404": "Yields:",
}
_VIOLATION = re.compile(r"(?P<path>[^:]+):(?P<line>\d+): (?P<code>DOC\d+): ")


def main(paths: list[str]) -> int:
    """Print what is wrong in ``paths``; returns the exit status."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pydoclint.main", "--quiet"),
            *("--show-filenames-in-every-violation-message", "true", *paths),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    matches = [(line, _VIOLATION.match(line)) for line in lines]
    counting = [
        line
        for line, match in matches
        if not match or not is_section_left_out(match["path"], int(match["line"]), match["code"])
    ]
    if done.returncode != 0 and not any(match for _, match in matches):
        print(done.stderr or done.stdout)
        return 1
    print("\n".join(counting))
    return 1 if counting else 0


def is_section_left_out(path: str, line: int, code: str) -> bool:
    """True if a violation is about a section that the docstring does not have at all."""
    section = SECTION_OF_CODE.get(code)
    return section is not None and section not in _docstring_at(Path(path), line)


def _docstring_at(path: Path, line: int) -> str:
    """The docstring of the definition that starts nearest before or at ``line``."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and min_line(node) <= line
    ]
    nearest = max(nodes, key=lambda node: node.lineno, default=None)
    return (ast.get_docstring(nearest) or "") if nearest else ""


def min_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """The first line of a definition, decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
