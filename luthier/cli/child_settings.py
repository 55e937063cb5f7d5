"""Settings that a command gives to the process it starts, or becomes, by the environment."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from luthier.errors import ConfigError

RUNTIME_MODULE = "luthier.runtime"


def add_settings(
    environment: MutableMapping[str, str], settings: Mapping[str, str | int | Path | None]
) -> None:
    """Put settings under their names in the environment; None changes nothing."""
    for name, value in settings.items():
        if value is not None:
            environment[name] = str(value)


def add_config_files(environment: MutableMapping[str, str], files: list[Path]) -> None:
    """Append files to ``CONFIG_FILES``; later ones win.

    Raises:
        ConfigError: If one of them is not there.
    """
    for file in files:
        if not file.is_file():
            raise ConfigError(f"config file '{file}' does not exist")
    named = [name for name in environment.get("CONFIG_FILES", "").split(",") if name]
    if named or files:
        environment["CONFIG_FILES"] = ",".join([*named, *(str(file) for file in files)])
