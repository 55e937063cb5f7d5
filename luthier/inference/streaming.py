"""Tokens into text, as they come.

``IncrementalDetokenizer`` gives out text that no later token can change; ``StopMatcher`` ends it at
the first stop sequence. Both see text only in order, and know nothing of models or requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
#: Decoding again from the start would cost O(N²); a window this long costs next to nothing.
_MAX_WINDOW = 32


class IncrementalDetokenizer:
    """Turns generated ids into text piece by piece.

    What ``push`` and ``flush`` return, joined, equals
    ``tokenizer.decode(all_ids, skip_special_tokens=True)``. Only a short window of ids is decoded
    at each step:

    ```
        ids    ... settled ... | window: a tail already given out | new |
                               ^ starts where no character and no byte run was open
    ```

    Args:
        tokenizer: Of the base model; not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._cleans_up = _cleans_up(tokenizer)
        # A slow tokenizer may drop broken bytes without a trace, so its window never moves.
        self._max_window = _MAX_WINDOW if tokenizer.is_fast else None
        self._special_ids = _skipped_ids(tokenizer)
        self._window: list[int] = []
        self._num_given = 0  # characters of the window's text
        self._last_settled = 0  # index into the window
        self._is_in_byte_run = False

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that became certain, often empty."""
        self._window.append(token_id)
        if token_id not in self._special_ids:
            piece = self._tokenizer.convert_ids_to_tokens(token_id)
            self._is_in_byte_run = bool(piece) and _BYTE_TOKEN.fullmatch(piece) is not None
        text = self._decode(self._window)
        num_certain = self._num_certain(text)
        new = self._take(text, num_certain)
        if num_certain == len(text):
            self._settle(text)
        return new

    def flush(self) -> str:
        """Return what was held back; call it once, after the last id."""
        text = self._decode(self._window)
        return self._take(text, len(text))

    def _decode(self, ids: list[int]) -> str:
        decoded = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(decoded, str)
        return decoded

    def _num_certain(self, text: str) -> int:
        """How many characters of the window's text no later token can change."""
        if self._is_in_byte_run:
            # One invalid byte turns all bytes of its run into replacement characters.
            return self._num_given
        end = len(text)
        if text.endswith(_REPLACEMENT):
            end -= 1  # perhaps the first bytes of a character
        if self._cleans_up:
            # A rewritten pattern is a space and up to three more characters.
            while end > self._num_given and " " in text[max(0, end - 3) : end]:
                end -= 1
        return max(end, self._num_given)

    def _take(self, text: str, end: int) -> str:
        new = text[self._num_given : end]
        self._num_given = end
        if self._cleans_up:
            new = self._tokenizer.clean_up_tokenization(new)
        return new

    def _settle(self, text: str) -> None:
        """Move the window's start up, where that cannot change what comes."""
        if self._max_window is not None and len(self._window) > self._max_window:
            tail = self._window[self._last_settled :]
            tail_text = self._decode(tail)
            # Decoders treat the first token of a text specially, so one must stay in sight.
            if tail_text and text.endswith(tail_text):
                self._window = tail
                self._num_given = len(tail_text)
        self._last_settled = len(self._window)


def _skipped_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    marked = (token_id for token_id, token in added if token.special)
    return frozenset(tokenizer.all_special_ids).union(marked)


def _cleans_up(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if ``decode`` rewrites `` .`` and the like, which transformers denies to BPE."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    is_bpe = tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return not is_bpe or bool(getattr(tokenizer, forced, False))


class StopMatcher:
    """Ends a text at the first stop sequence, wherever the pieces it comes in are cut.

    The sequence whose last character comes first counts; of several ending there, the longest.

    Args:
        stop_sequences: Non-empty texts; none means nothing ever stops.
        is_kept: Whether the matched sequence stays in the text. If not, text that may be the
            start of one is held back until it is decided.
    """

    def __init__(self, stop_sequences: Sequence[str], *, is_kept: bool) -> None:
        self._stops = tuple(stop_sequences)
        self._is_kept = is_kept
        self._partial = ""  # the longest tail of the text so far that may start a stop sequence
        self.has_matched = False

    def push(self, text: str) -> str:
        """Take more text; return what of the whole may be shown now, and set ``has_matched``."""
        if not self._stops or self.has_matched:
            return "" if self.has_matched else text
        seen = self._partial + text
        shown = len(self._partial) if self._is_kept else 0
        match = self._first_match(seen)
        if match is not None:
            self.has_matched = True
            self._partial = ""
            start, end = match
            return seen[shown : end if self._is_kept else start]
        self._partial = self._longest_partial(seen)
        return seen[shown:] if self._is_kept else seen[: len(seen) - len(self._partial)]

    def flush(self) -> str:
        """Return what was held back; call it once, when no more text comes."""
        held = "" if self._is_kept else self._partial
        self._partial = ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        starts = ((text.find(stop), len(stop)) for stop in self._stops)
        found = [(start + length, start) for start, length in starts if start >= 0]
        if not found:
            return None
        end, start = min(found)
        return start, end

    def _longest_partial(self, text: str) -> str:
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return text[len(text) - longest :]
