"""Checks of single values that came from outside: the error names the thing, value and limit."""

from __future__ import annotations

import math

from luthier.errors import InvalidInputError


def require_int(
    name: str, value: object, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Give ``value`` back if it is an int (a bool is not) within the bounds.

    Args:
        name: What the message calls it.
        value: Anything.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.

    Returns:
        The value.

    Raises:
        InvalidInputError: Naming ``name``, the value and the bound that it breaks.

    Example:
        >>> require_int("batch_size", 0, minimum=1)
        Traceback (most recent call last):
        luthier.errors.InvalidInputError: 'batch_size' must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"'{name}' must be int, got {_shown(value)}")
    if minimum is not None and value < minimum:
        raise InvalidInputError(f"'{name}' must be at least {minimum}, got {_shown(value)}")
    if maximum is not None and value > maximum:
        raise InvalidInputError(f"'{name}' must be at most {maximum}, got {_shown(value)}")
    return value


def require_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> float:
    """Give ``value`` back as a float if it is a finite number within the bounds.

    Args:
        name: What the message calls it.
        value: Anything; bool, NaN and infinities are refused.
        minimum: Smallest allowed value.
        above: Every allowed value is greater.
        maximum: Largest allowed value.

    Returns:
        The value as a float.

    Raises:
        InvalidInputError: Naming ``name``, the value and the bound that it breaks.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"'{name}' must be a number, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInputError(f"'{name}' must be finite, got {_shown(value)}")
    if minimum is not None and number < minimum:
        raise InvalidInputError(f"'{name}' must be at least {minimum:.15g}, got {_shown(value)}")
    if above is not None and number <= above:
        raise InvalidInputError(f"'{name}' must be greater than {above:.15g}, got {_shown(value)}")
    if maximum is not None and number > maximum:
        raise InvalidInputError(f"'{name}' must be at most {maximum:.15g}, got {_shown(value)}")
    return number


def require_bool(name: str, value: object) -> bool:
    """Give ``value`` back if it is True or False; 0, 1 and words are refused.

    Args:
        name: What the message calls it.
        value: Anything.

    Returns:
        The value.

    Raises:
        InvalidInputError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise InvalidInputError(f"'{name}' must be true or false, got {_shown(value)}")
    return value


def require_text(name: str, value: object, *, max_chars: int) -> str:
    """Give ``value`` back if it is a string of at most ``max_chars`` whole characters.

    Args:
        name: What the message calls it.
        value: Anything.
        max_chars: Longest allowed string.

    Returns:
        The value.

    Raises:
        InvalidInputError: If it is no string, too long or no valid Unicode; the text itself is
            never quoted whole.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"'{name}' must be a string, got {_shown(value)}")
    if len(value) > max_chars:
        raise InvalidInputError(
            f"'{name}' has {len(value)} characters, at most {max_chars} are allowed"
        )
    return require_unicode(name, value)


def require_names(name: str, values: object, *, max_count: int, max_chars: int) -> tuple[str, ...]:
    """Give ``values`` back if it is a tuple of texts, none of them empty.

    Args:
        name: What messages call it.
        values: Anything; a list was made a tuple before.
        max_count: Most entries.
        max_chars: Longest entry, in characters.

    Returns:
        The names.

    Raises:
        InvalidInputError: Naming the list or its entry, and the limit.
    """
    if not isinstance(values, tuple):
        raise InvalidInputError(f"'{name}' must be a list of names, got {_shown(values)}")
    require_count(name, len(values), max_count=max_count)
    for index, value in enumerate(values):
        if not require_text(f"{name}[{index}]", value, max_chars=max_chars):
            raise InvalidInputError(f"'{name}[{index}]' must not be empty")
    return values


def require_count(name: str, count: int, *, max_count: int) -> None:
    """Refuse a list or table that has too many entries.

    Args:
        name: What the message calls it.
        count: Entries.
        max_count: Most that are allowed.

    Raises:
        InvalidInputError: Naming both numbers.
    """
    if count > max_count:
        raise InvalidInputError(f"'{name}' has {count} entries, at most {max_count} are allowed")


def require_unicode(name: str, text: str) -> str:
    """Give ``text`` back if it is valid Unicode; JSON can spell half of a character.

    Args:
        name: What the message calls it.
        text: Any string.

    Returns:
        The text.

    Raises:
        InvalidInputError: Naming the place of the half, which no tokenizer or wire can take.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"'{name}' is no valid text: half of a surrogate pair at character {error.start}"
        ) from error
    return text


def _shown(value: object) -> str:
    """A value as a message may show it: a 10 kB string or a number of 5000 digits is cut."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of about 10^{int(value.bit_length() * 0.30103)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
