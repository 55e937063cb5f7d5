"""What runs here, and whether it can serve."""

from __future__ import annotations

import asyncio
import dataclasses
from importlib import metadata
from typing import Any

from caikit.interfaces.runtime.data_model import RuntimeInfoResponse

import luthier
from luthier.inference.base import Engine
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

    async def engines(self) -> list[dict[str, Any]]:
        """The engines that run now: one for each base model, and for each whole tuned model.

        Returns:
            JSON values: what ``EngineStatus`` says, and ``AdapterStatus`` under ``adapters``, which
            is None where there is none or the engine cannot tell.
        """
        # In threads: an engine in another process is asked. All at once, though one may not answer.
        return await asyncio.gather(*(asyncio.to_thread(_about, each) for each in engines()))

    def problem(self) -> str:
        """Why the server cannot serve, or "" if it can."""
        if self.is_draining:
            return "the server is stopping"
        statuses = [engine.status() for engine in engines()]
        return next((status.detail for status in statuses if not status.is_healthy), "")


def _about(engine: Engine) -> dict[str, Any]:
    adapters = engine.adapter_status()
    return {
        "base_model": engine.base_model_name,
        **dataclasses.asdict(engine.status()),
        "adapters": None if adapters is None else dataclasses.asdict(adapters),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
