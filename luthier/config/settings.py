"""The keys of the schema, each with its type and the name of its environment variable."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.config.schema import DEFAULT_KEY, Config
from luthier.errors import did_you_mean


@dataclass(frozen=True)
class Setting:
    """One key that holds a value rather than more keys.

    Args:
        path: The names from the top to the key.
        annotation: The type its value must have, with its bounds.
    """

    path: tuple[str, ...]
    annotation: Any

    @property
    def key(self) -> str:
        """The key as messages name it: ``runtime.http.port``."""
        return ".".join(self.path)

    @property
    def env_name(self) -> str:
        """The environment variable that overrides it: ``RUNTIME_HTTP_PORT``."""
        return env_name(self.key)


def env_name(key: str) -> str:
    """The environment variable of a dotted key.

    Example:
        >>> env_name("runtime.http.port")
        'RUNTIME_HTTP_PORT'
        >>> env_name("training_data_limit.__default__")
        'TRAINING_DATA_LIMIT___DEFAULT__'
    """
    return re.sub(r"[^0-9A-Za-z_]", "_", key).upper()


@functools.cache
def fields_of(level: type) -> dict[str, Any]:
    """The keys of one level (a dataclass of the schema) and their types, bounds included."""
    hints = typing.get_type_hints(level, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(level)}


def is_level(annotation: Any) -> bool:
    """True if a type of the schema holds more keys, false if it holds a value."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


@functools.cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the schema, then the default row limit.

    ``training_data_limit.__default__`` is the one key inside a mapping with free keys that has a
    variable of its own, because caikit-nlp's users set it.
    """
    return (*_settings_below(Config, ()), _default_row_limit())


def _settings_below(level: type, path: tuple[str, ...]) -> list[Setting]:
    found: list[Setting] = []
    for name, annotation in fields_of(level).items():
        if is_level(annotation):
            found += _settings_below(annotation, (*path, name))
        else:
            found.append(Setting((*path, name), annotation))
    return found


def _default_row_limit() -> Setting:
    rows_or_module = typing.get_args(fields_of(Config)["training_data_limit"])[1]
    return Setting(("training_data_limit", DEFAULT_KEY), typing.get_args(rows_or_module)[0])


def suggest(path: tuple[str, ...], siblings: Mapping[str, Any]) -> str:
    """The tail of a message about the unknown key ``path``: the nearest known key, or nothing.

    A slip in the last name is looked for among its siblings; a key put on the wrong level, or
    written like a variable, among all keys.
    """
    keys = [setting.key for setting in all_settings()]
    same_variable = [key for key in keys if env_name(key) == env_name(".".join(path))]
    if same_variable:
        return f", did you mean {same_variable[0]!r}?"
    tail = did_you_mean(path[-1], siblings)
    if tail:
        return tail
    same_last = [key for key in keys if key.rsplit(".", 1)[-1] == path[-1]]
    if len(same_last) == 1:
        return f", did you mean {same_last[0]!r}?"
    return did_you_mean(".".join(path), keys)
