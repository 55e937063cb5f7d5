"""Where the short sequences of a growing text were seen last; each look takes the same time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Longest first: the longer the match, the likelier what followed.
_NGRAM_SIZES = (3, 2)


class SeenNgrams:
    """Where the short sequences of a text were seen last."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._next_place: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        for token_id in token_ids:
            place = len(self._token_ids)
            for size in _NGRAM_SIZES:
                if place >= size:
                    self._next_place[tuple(self._token_ids[place - size :])] = place
            self._token_ids.append(token_id)

    def continuation(self, max_tokens: int, *, min_match: int = 2) -> Sequence[int]:
        """What followed the text's last tokens where they were seen before; empty if never.

        Where that reaches the text's end, the text goes round in circles, and so does this.

        Args:
            max_tokens: Tokens to give.
            min_match: Last tokens that must be the same, 2 or 3.

        Returns:
            ``max_tokens`` or none.
        """
        for size in _NGRAM_SIZES:
            if size < min_match:
                break
            place = self._next_place.get(tuple(self._token_ids[-size:]))
            if place is not None:
                following = self._token_ids[place : place + max_tokens]
                num_rounds = -(-max_tokens // len(following)) if following else 0
                return (following * num_rounds)[:max_tokens]
        return ()
