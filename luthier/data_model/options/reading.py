"""Options by the names that a file, a request or keyword arguments give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean


@dataclass(frozen=True)
class NamedOptions:
    """Options, a field with a ``Setting`` each, that can be read from names and values."""

    #: What one of them is called in a message.
    called: ClassVar[str] = "option"

    @classmethod
    def from_mapping(cls, given: Mapping[str, object], *, defaults: Self | None = None) -> Self:
        """Options from names and values, as a YAML file, a request or keyword arguments give them.

        Names in other systems are accepted (``lr``, ``random_seed`` …). A None value takes the
        default. Nothing but the names is checked.

        Args:
            given: Name to value.
            defaults: What is not given; the class's defaults if None.

        Returns:
            The options, unchecked.

        Raises:
            UnknownKeyError: For a name that no option has, with the nearest known one.
            InvalidInputError: If an option is given twice, under two of its names.
        """
        values: dict[str, Any] = {
            name: cls.plain_value(name, value)
            for name, value in _given_options(given, cls, what=cls.called).items()
        }
        return dataclasses.replace(defaults or cls(), **values)

    @classmethod
    def plain_value(cls, name: str, value: object) -> object:
        """The form in which an option holds what was given for it.

        Args:
            name: Of the option.
            value: Not None.

        Returns:
            A list as a tuple; one text where a list of names is wanted as a list of one; any other
            value as it is.
        """
        if isinstance(value, list):
            return tuple(value)
        (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
        is_one_name = field.metadata["setting"].kind == "names" and isinstance(value, str)
        return (value,) if is_one_name else value


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


def _given_options(
    given: Mapping[str, object], options: type[Any], *, what: str
) -> dict[str, object]:
    """What is given, under our names; None is left out."""
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
