"""One row of a table of another system's settings, and what becomes of a value in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from luthier.data_model.options.option_table import is_option, option_at

#: Setting's name -> its value; all settings of the table have one.
Values: TypeAlias = Mapping[str, Any]


class Status(StrEnum):
    """What there is here in place of another system's setting."""

    WORKS = "works"
    REPLACED = "replaced"
    NOT_BUILT = "not built yet"
    NOT_OFFERED = "not offered"
    PREFERENCE = "preference tuning, not built yet"
    HEADS = "no experiment: classification heads are tuned by HeadTuning, regression is not offered"


@dataclass(frozen=True)
class Refusal:
    """What a converter gives for a value that it cannot express.

    Args:
        reason: For people.
    """

    reason: str


@dataclass(frozen=True)
class Unneeded:
    """What a converter gives for a value that our default does for as well.

    Args:
        reason: For people.
    """

    reason: str


def same(value: Any, values: Values) -> Any:
    """The value means the same here."""
    return value


def always(value: Any, values: Values) -> bool:
    """No value changes what is learned."""
    return True


def never(value: Any, values: Values) -> bool:
    """Every value changes what is learned."""
    return False


def only(*harmless: Any) -> Callable[[Any, Values], bool]:
    """These values ask for nothing that is missing here."""

    def is_harmless(value: Any, values: Values) -> bool:
        return value in harmless

    return is_harmless


class _Absent:
    """Stands for "no default": older settings count only where they are given."""

    def __repr__(self) -> str:
        return "-"


ABSENT = _Absent()


@dataclass(frozen=True)
class ForeignSetting:
    """One setting of another system.

    Args:
        name: As its files have it.
        default: Where they leave it out; ``ABSENT`` where the setting is of an older version.
        option: Path of ours that it becomes, or "". A path that this build lacks counts as not
            built yet.
        convert: Its value as a value of ours, or a ``Refusal``, or ``Unneeded``.
        status: For a row without an option.
        reason: What holds instead, or what to know of the conversion.
        is_harmless: For a row without an option: whether leaving a value out changes nothing that
            is learned.
        only_if: Name of a setting without which this one has no effect; ``not name`` the reverse.
        seq2seq_default: Where it differs for sequence-to-sequence models.
    """

    name: str
    default: Any
    option: str = ""
    convert: Callable[[Any, Values], Any] = same
    status: Status = Status.NOT_BUILT
    reason: str = ""
    is_harmless: Callable[[Any, Values], bool] = never
    only_if: str = ""
    seq2seq_default: Any = ABSENT

    @property
    def has_option(self) -> bool:
        """Whether this build has the option that the setting becomes."""
        return bool(self.option) and is_option(self.option)

    @property
    def state(self) -> Status:
        """What there is here in its place."""
        return Status.WORKS if self.has_option else self.status

    def has_effect(self, values: Values) -> bool:
        """Whether its system would look at it, given the others.

        Args:
            values: Of the whole table.

        Returns:
            False if the setting it depends on is off.
        """
        if not self.only_if:
            return True
        name = self.only_if.removeprefix("not ")
        is_on = values.get(name) not in (None, False, "None", "", [])
        return is_on != (name != self.only_if)


def as_choice(path: str) -> Callable[[Any, Values], Any]:
    """Converts a word to the choice of ours that is spelled alike, whatever its capitals.

    Args:
        path: Of the option.

    Returns:
        The converter; a word that is no choice of ours is refused.
    """

    def convert(value: Any, values: Values) -> Any:
        choices = option_at(path).setting.choices
        if not choices:
            return value
        for choice in choices:
            if _letters(choice) == _letters(str(value)):
                return choice
        return Refusal(f"{value!r:.80} is not among {', '.join(choices)}")

    return convert


def _letters(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())
