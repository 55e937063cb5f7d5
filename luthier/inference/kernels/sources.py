"""What tells the kernels' sources of one version from those of another.

``setup.py`` compiles it in, so that a library that was compiled from other sources than those
beside it is not called. Nothing but Python itself may be imported here: at build nothing else is
there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(folder: Path) -> str:
    """The sources' own, whatever folder they lie in.

    Args:
        folder: Of the C files and their headers.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
