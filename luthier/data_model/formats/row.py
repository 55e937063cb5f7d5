"""One row of a file, and how messages name it."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of a file says, before anybody knows what it means.

    Args:
        place: File and row (from 1) for messages: ``"a.csv row 1 (line 2)"``.
        value: Column name to cell for a well-formed row; whatever the JSON says otherwise.
    """

    place: str
    value: object


def shown(text: str) -> str:
    """A piece of outside text as a message may quote it: at most 80 characters, escaped.

    Args:
        text: Of any length.

    Returns:
        The text or its start, in quotes.

    Example:
        >>> shown("a" * 100)[-6:]
        "aa...'"
    """
    cut = text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 3]}..."
    return repr(cut)
