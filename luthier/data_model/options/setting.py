"""What is known about one option beside its type and default.

Every field of an options class carries a ``Setting``: meaning, range and names in other systems.
Checking, the alias tables and the documentation are all made from these, so a new option is one
new field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data_model.checks import (
    require_bool,
    require_int,
    require_names,
    require_number,
    require_text,
)
from luthier.data_model.options.limits import TrainingLimits
from luthier.errors import InvalidInputError, did_you_mean

#: Longest verbalizer or initial text, in characters.
MAX_TEXT_CHARS = 100_000
#: Most entries of a list of names.
MAX_NAMES = 1000


@dataclass(frozen=True)
class Setting:
    """What is known about one option beside its type and default.

    Args:
        kind: ``int``, ``number``, ``bool``, ``text``, ``choice`` or ``names`` (a tuple of texts).
        meaning: One or two sentences for people.
        minimum: Smallest value.
        above: Every value is greater.
        maximum: Largest value, whatever the server's limits say.
        limit: Field of ``TrainingLimits`` that caps the value, or "".
        choices: The words of a ``choice``, or all that ``names`` may hold.
        is_optional: True where None means "decide for me".
        aliases: Names in other systems that are accepted for it.
        is_bookkeeping: True where no value changes what is learned, so that a resumed training may
            have another one.
    """

    kind: str
    meaning: str
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    limit: str = ""
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    aliases: tuple[str, ...] = ()
    is_bookkeeping: bool = False

    def check(self, name: str, value: object, limits: TrainingLimits) -> None:
        """Refuse a value of the wrong type or range.

        Args:
            name: The option's name, for the message.
            value: Anything.
            limits: The server's caps.

        Raises:
            InvalidInputError: Naming the option, the value and the limit.
        """
        if value is None and self.is_optional:
            return
        if self.kind == "bool":
            require_bool(name, value)
        elif self.kind == "int":
            minimum = None if self.minimum is None else int(self.minimum)
            maximum = self._maximum(limits)
            require_int(
                name, value, minimum=minimum, maximum=None if maximum is None else int(maximum)
            )
        elif self.kind == "number":
            require_number(
                name,
                value,
                minimum=self.minimum,
                above=self.above,
                maximum=self._maximum(limits),
            )
        elif self.kind == "names":
            self._check_names(name, value)
        else:
            self._check_text(name, value)

    def _check_names(self, name: str, values: object) -> None:
        for value in require_names(name, values, max_count=MAX_NAMES, max_chars=MAX_TEXT_CHARS):
            self._check_text(name, value)

    def _check_text(self, name: str, value: object) -> None:
        text = require_text(name, value, max_chars=MAX_TEXT_CHARS)
        if self.choices and text not in self.choices:
            raise InvalidInputError(
                f"'{name}' must be one of {', '.join(self.choices)}, got {text[:80]!r}"
                + did_you_mean(text[:80], self.choices)
            )

    def _maximum(self, limits: TrainingLimits) -> float | None:
        return getattr(limits, self.limit) if self.limit else self.maximum


def option(default: Any, kind: str, meaning: str, **known: Any) -> Any:
    """A dataclass field with its ``Setting``.

    Args:
        default: The value where nothing is said.
        kind: As in ``Setting``.
        meaning: As in ``Setting``.
        **known: The other arguments of ``Setting``.

    Returns:
        What ``dataclasses.field`` gives.
    """
    metadata = {"setting": Setting(kind, meaning, **known)}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
