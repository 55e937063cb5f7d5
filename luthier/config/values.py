"""From what a file or a variable holds to the type that the schema wants.

Two steps: ``from_environment`` reads the text of a variable as the setting's kind of value would
be written in YAML; ``converted`` checks any value against the type and its bounds. Messages name
the key and the value; the loader adds the source.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from luthier.config.yaml_text import parse_yaml
from luthier.errors import ConfigError

_MAX_SHOWN_CHARS = 80
_SCALARS = (bool, int, float, str)
_TRUE_WORDS = ("true", "yes", "on", "1")
_FALSE_WORDS = ("false", "no", "off", "0")


def converted(key: str, value: Any, annotation: Any) -> Any:
    """Check ``value`` against a type of the schema.

    Args:
        key: What messages call it.
        value: What YAML gave.
        annotation: bool, int, float, str, a tuple or mapping of those, or a union of them; with
            bounds where it is ``Annotated``.

    Returns:
        The value in exactly that type: a list becomes a tuple, an int where a float is wanted
        a float.

    Raises:
        ConfigError: If the type or a bound does not hold.
    """
    base, checks = _split(annotation)
    if base in _SCALARS:
        result = _converted_scalar(key, value, base)
    elif _is_union(base):
        result = _converted_union(key, value, typing.get_args(base))
    elif typing.get_origin(base) is tuple:
        result = _converted_tuple(key, value, typing.get_args(base)[0])
    else:
        result = _converted_mapping(key, value, typing.get_args(base)[1])
    for check in checks:
        violation = check.violation(result)
        if violation:
            raise ConfigError(f"'{key}' {violation}, got {shown(value)}")
    return result


def from_environment(text: str, annotation: Any) -> Any:
    """Read the text of an environment variable as a value of ``annotation``, unchecked.

    Text stays as it is. Lists may be written with commas, lists and mappings as YAML or JSON.
    What cannot be read as the type is given back as text, which ``converted`` then refuses.
    """
    base, _ = _split(annotation)
    if base is str:
        return text
    if base is bool:
        return _bool_word(text)
    if typing.get_origin(base) is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return parse_yaml(text) if text.strip() else text


def is_scalar(annotation: Any) -> bool:
    """True if a type of the schema is bool, int, float or str, whatever its bounds."""
    return _split(annotation)[0] in _SCALARS


#: Ends of keys whose values no message shows.
SECRET_KEYS = ("api_key",)


def shown(value: Any) -> str:
    """A value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def type_name(annotation: Any) -> str:
    """A type as messages and the documentation write it.

    Example:
        >>> type_name(tuple[str, ...])
        'list of str'
    """
    base, _ = _split(annotation)
    if base in _SCALARS:
        return str(base.__name__)
    arguments = typing.get_args(base)
    if _is_union(base):
        return " or ".join(type_name(argument) for argument in arguments)
    if typing.get_origin(base) is tuple:
        return f"list of {type_name(arguments[0])}"
    return f"mapping to {type_name(arguments[1])}"


def bounds_of(annotation: Any) -> tuple[Any, ...]:
    """The checks of a type of the schema: Bounds, Choice, Pattern."""
    return _split(annotation)[1]


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is typing.Annotated:
        base, *checks = typing.get_args(annotation)
        return base, tuple(checks)
    return annotation, ()


def _bool_word(text: str) -> bool | str:
    word = text.strip().lower()
    if word in _TRUE_WORDS or word in _FALSE_WORDS:
        return word in _TRUE_WORDS
    return text


def _is_union(base: Any) -> bool:
    return isinstance(base, types.UnionType) or typing.get_origin(base) is typing.Union


def _wrong_type(key: str, value: Any, annotation: Any) -> ConfigError:
    quotes = " (put quotes around text)" if annotation is str else ""
    got = f"a {type(value).__name__}" if key.endswith(SECRET_KEYS) else shown(value)
    return ConfigError(f"'{key}' must be {type_name(annotation)}, got {got}{quotes}")


def _converted_scalar(key: str, value: Any, base: type[Any]) -> Any:
    # A bool is an int in Python, and an int will do where a float is wanted.
    accepted = (int, float) if base is float else (base,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and base is not bool):
        raise _wrong_type(key, value, base)
    if base is float:
        return _finite(key, value)
    if isinstance(value, str) and "\0" in value:
        what = "" if key.endswith(SECRET_KEYS) else f", got {shown(value)}"
        raise ConfigError(f"'{key}' must not hold a NUL character{what}")
    return value


def _finite(key: str, value: float) -> float:
    try:
        result = float(value)
    except OverflowError:  # an int with more than 308 digits
        result = math.inf
    if not math.isfinite(result):
        raise ConfigError(f"'{key}' must be a finite number, got {shown(value)}")
    return result


def _converted_union(key: str, value: Any, alternatives: tuple[Any, ...]) -> Any:
    """The first alternative of the value's kind, mapping or not, so that its error is useful."""
    for alternative in alternatives:
        base, _ = _split(alternative)
        if isinstance(value, Mapping) == (typing.get_origin(base) is not None):
            return converted(key, value, alternative)
    raise ConfigError(
        f"'{key}' must be {' or '.join(type_name(each) for each in alternatives)}, "
        f"got {shown(value)}"
    )


def _converted_tuple(key: str, value: Any, item: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong_type(key, value, tuple[item, ...])
    return tuple(converted(f"{key}[{index}]", each, item) for index, each in enumerate(value))


def _converted_mapping(key: str, value: Any, item: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_type(key, value, Mapping[str, item])
    for name in value:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"'{key}' has the name {shown(name)}: names must be texts, in quotes")
    return {name: converted(f"{key}.{name}", each, item) for name, each in value.items()}
