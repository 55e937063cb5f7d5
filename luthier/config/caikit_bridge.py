"""Hands caikit and alog the few settings they read from their own global state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import alog

from luthier import compat  # noqa: F401  patches that must be there before caikit
from luthier.config.schema import Config, LogConfig
from luthier.config.settings import env_name

import caikit  # isort: skip  compat comes first

LIBRARY = "luthier"

#: Settings of caikit that are Luthier's to decide, and where caikit would look for others.
_OWNED_KEYS = (
    "config_files",
    "runtime.library",
    "runtime.service_generation.domain",
    "runtime.service_generation.package",
)


def apply_to_caikit(config: Config) -> None:
    """Tell caikit which library it serves and what the services are called on the wire.

    Changes caikit's global configuration, and for the moment of the call the environment: caikit
    lets files and variables win over what it is handed, and a RUNTIME_LIBRARY left over from
    caikit-nlp would make it serve a library that is not there. Call it once, before caikit
    generates services. Twice is harmless.
    """
    with _hidden_variables([env_name(key) for key in _OWNED_KEYS]):
        caikit.configure(
            config_dict={
                "config_files": "",
                "runtime": {
                    "library": LIBRARY,
                    "service_generation": {
                        "domain": config.runtime.service_generation.domain,
                        "package": config.runtime.service_generation.package,
                    },
                },
            }
        )


def configure_logging(config: LogConfig) -> None:
    """Set up alog for this process. Replaces every handler of the root logger: for doors only."""
    formatter = (
        alog.AlogPrettyFormatter(config.channel_width)
        if config.formatter == "pretty"
        else config.formatter
    )
    alog.configure(config.level, config.filters, formatter, config.thread_id)


@contextlib.contextmanager
def _hidden_variables(names: list[str]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
