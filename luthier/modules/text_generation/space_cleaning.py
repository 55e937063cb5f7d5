"""The spaces that caikit-nlp took out of its texts.

caikit-nlp decodes with transformers' clean-up, which makes `` ,`` a ``,`` and `` n't`` an ``n't``
wherever they stand. Models that it saved give the same texts here; no other model's are touched.
"""

from __future__ import annotations

_REPLACEMENTS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
#: A replaced pattern is a space and at most this many more characters.
_MAX_AFTER_SPACE = 3


def clean_up_spaces(text: str) -> str:
    """What transformers' ``clean_up_tokenization`` makes of a whole text.

    Args:
        text: Decoded.

    Returns:
        The text without the spaces.

    Example:
        >>> clean_up_spaces("It 's fine , is n't it ?")
        "It's fine, isn't it?"
    """
    for pattern, replacement in _REPLACEMENTS:
        text = text.replace(pattern, replacement)
    return text


class SpaceCleaner:
    """``clean_up_spaces`` on a text that comes in pieces.

    Args:
        is_active: False lets everything through as it is.
    """

    def __init__(self, *, is_active: bool) -> None:
        self._is_active = is_active
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text.

        Args:
            text: The next piece.

        Returns:
            What no later piece can change.
        """
        if not self._is_active:
            return text
        self._held += text
        end = len(self._held)
        # Cut where no pattern, nor one that a replacement creates, can reach across.
        while end > 0 and " " in self._held[max(0, end - _MAX_AFTER_SPACE) : end]:
            end -= 1
        certain, self._held = self._held[:end], self._held[end:]
        return clean_up_spaces(certain)

    def flush(self) -> str:
        """Return what was held back; call it once, when no more text comes."""
        rest, self._held = clean_up_spaces(self._held), ""
        return rest
