"""Check that the wheel alone works: nothing of it may be found only in the source tree.

    python scripts/check_wheel.py FOLDER_WITH_THE_WHEEL

Unpacks the wheel into a folder of its own and runs it with the packages of this interpreter's
environment, but without its ``.pth`` files: they would lead back to the source tree.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

NEEDED_FILES = (
    "luthier/py.typed",
    "luthier/config/config.yml",
    "luthier/modules/wire_numbers.json",
    # What kernels were compiled from is compared when they are loaded.
    "luthier/inference/kernels/sources.c",
    "luthier/inference/kernels/vectors.h",
)

#: Runs with ``-S``: no site-packages of its own, no .pth files.
IMPORT_EVERYTHING = """
import sys
sys.path[:0] = sys.argv[1:]
import importlib, pkgutil, pathlib
import luthier
assert pathlib.Path(luthier.__file__).is_relative_to(sys.argv[1]), luthier.__file__
names = [each.name for each in pkgutil.walk_packages(luthier.__path__, "luthier.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from luthier.config import load_config
load_config({})
print(f"{len(names)} modules of luthier {luthier.__version__} import from the wheel")
"""

HELP = """
import sys
sys.path[:0] = sys.argv[1:3]
sys.argv = ["luthier", "--help"]
from luthier.cli.__main__ import main
main()
"""


def main() -> int:
    """Check the one wheel in the folder named on the command line; returns the exit status."""
    wheels = list(Path(sys.argv[1]).glob("luthier-*.whl"))
    if len(wheels) != 1:
        print(f"expected one wheel of luthier in {sys.argv[1]}, found {len(wheels)}")
        return 1
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheels[0]) as wheel:
        names = wheel.namelist()
        missing = [name for name in NEEDED_FILES if name not in names]
        foreign = [name for name in names if not name.startswith(("luthier/", "luthier-"))]
        licences = [name for name in names if name.endswith("/licenses/LICENSE")]
        if missing or foreign or not licences:
            print(f"missing in the wheel: {missing}; not ours: {foreign}; licences: {licences}")
            return 1
        wheel.extractall(folder)
        return _run(IMPORT_EVERYTHING, folder) or _run(HELP, folder)


def _run(code: str, folder: str) -> int:
    dependencies = sysconfig.get_paths()["purelib"]
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code, folder, dependencies],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    output = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        print(output)
    else:
        print(output.splitlines()[0] if output else "")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
