"""What runs here, and whether it can serve."""

from __future__ import annotations

from importlib import metadata

from caikit.interfaces.runtime.data_model import RuntimeInfoResponse

import luthier
from luthier.inference.registry import engines

#: Packages whose versions explain most differences between two servers.
PACKAGES = (
    "luthier",
    "caikit",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "grpcio",
    "protobuf",
)


class InfoService:
    """Versions and health. ``is_draining`` turns true when the server begins to stop."""

    def __init__(self) -> None:
        self.is_draining = False

    def versions(self) -> RuntimeInfoResponse:
        """Versions of Luthier and of the packages that matter."""
        found = {package: version for package in PACKAGES if (version := _version(package))}
        return RuntimeInfoResponse(runtime_version=luthier.__version__, python_packages=found)

    def problem(self) -> str:
        """Why the server cannot serve, or "" if it can."""
        if self.is_draining:
            return "the server is stopping"
        statuses = [engine.status() for engine in engines()]
        return next((status.detail for status in statuses if not status.is_healthy), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
