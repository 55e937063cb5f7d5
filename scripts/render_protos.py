"""Render the wire: ``protos/*.proto`` and the frozen numbers that the package carries.

    python scripts/render_protos.py            write both
    python scripts/render_protos.py --check    exit 1 if what is committed differs

A field that was ever rendered keeps its number, even after it is gone from the signatures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from py_to_proto import descriptor_to_file

from luthier.modules.service_package import (
    WIRE_PACKAGE,
    ServicePackages,
    frozen_numbers,
    service_packages,
)

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
NUMBERS = ROOT / "luthier" / "modules" / "wire_numbers.json"


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    files = wire_files(service_packages())
    rendered = render_protos(files)
    numbers = render_numbers(files)
    if arguments.check:
        return check(rendered, numbers)
    write(rendered, numbers)
    return 0


def wire_files(packages: ServicePackages) -> list[FileDescriptor]:
    """Every file that our services need, by name."""
    found: dict[str, FileDescriptor] = {}
    waiting = [getattr(packages, field.name).descriptor.file for field in fields(packages)]
    while waiting:
        file = waiting.pop()
        if file.name not in found and not file.name.startswith("google/"):
            found[file.name] = file
            waiting.extend(file.dependencies)
    return [found[name] for name in sorted(found)]


def render_protos(files: Iterable[FileDescriptor]) -> dict[str, str]:
    """File name to text, as ``protoc`` reads it."""
    return {file.name: descriptor_to_file(file) for file in files}


def render_numbers(files: Iterable[FileDescriptor]) -> str:
    """The numbers of the request messages, those of retired fields included, as JSON."""
    numbers = frozen_numbers()
    for file in files:
        if file.package != WIRE_PACKAGE:
            continue
        for name, message in file.message_types_by_name.items():
            given = {field.name: field.number for field in message.fields}
            numbers[name] = numbers.get(name, {}) | given
    return json.dumps(numbers, indent=2, sort_keys=True) + "\n"


def check(rendered: dict[str, str], numbers: str) -> int:
    """Say what differs from the committed files."""
    committed = {path.name: path.read_text("utf-8") for path in PROTOS.glob("*.proto")}
    names = sorted(rendered.keys() | committed.keys())
    wrong = [f"protos/{name}" for name in names if rendered.get(name) != committed.get(name)]
    if NUMBERS.read_text("utf-8") != numbers:
        wrong.append(str(NUMBERS.relative_to(ROOT)))
    for name in wrong:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if wrong else 0


def write(rendered: dict[str, str], numbers: str) -> None:
    """Replace the committed files."""
    PROTOS.mkdir(exist_ok=True)
    for path in PROTOS.glob("*.proto"):
        if path.name not in rendered:
            path.unlink()
    for name, text in rendered.items():
        (PROTOS / name).write_text(text, "utf-8")
    NUMBERS.write_text(numbers, "utf-8")
    print(f"{len(rendered)} files in {PROTOS}")


if __name__ == "__main__":
    sys.exit(main())
