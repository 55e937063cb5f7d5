"""Options by the names that a file, a request or keyword arguments give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean


def option_names(options: type[Any]) -> tuple[str, ...]:
    """The names of all options of a class."""
    return tuple(field.name for field in dataclasses.fields(options))


def option_aliases(options: type[Any]) -> Mapping[str, str]:
    """Name in another system -> our option."""
    return {
        alias: field.name
        for field in dataclasses.fields(options)
        for alias in field.metadata["setting"].aliases
    }


def given_options(
    given: Mapping[str, object], options: type[Any], *, what: str
) -> dict[str, object]:
    """What is given, under our names; None is left out.

    Args:
        given: Name, ours or another system's, to value.
        options: The class whose options they are.
        what: To call them in a message: ``training option``.

    Returns:
        Our name to value as it is given.

    Raises:
        UnknownKeyError: For a name that no option has, with the nearest known one.
        InvalidInputError: If an option is given twice, under two of its names.
    """
    names, aliases = option_names(options), option_aliases(options)
    values: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for name, value in given.items():
        option = aliases.get(name, name)
        if option not in names:
            known = (*names, *aliases)
            raise UnknownKeyError(f"unknown {what} {name[:80]!r}{did_you_mean(name[:80], known)}")
        if value is None:
            continue
        if option in spelled:
            raise InvalidInputError(
                f"'{name}' and '{spelled[option]}' are the same option; give one of them"
            )
        spelled[option] = name
        values[option] = value
    return values
