"""Where the short sequences of a growing text were seen last, and how far that tells what comes.

Each look takes the same time, however long the text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: How often what followed a match follows again, by the match's length, before a text has shown
#: its own ways: from answers of SmolLM2 that copy much and that copy nothing. After a single token
#: it is 1 in 10 where nothing is copied, which does not pay.
_FIRST_RATES = {4: 0.8, 3: 0.65, 2: 0.5}
#: The longest match first: the likeliest.
_SIZES = tuple(_FIRST_RATES)
#: What one more token weighs in a rate.
_LEARNING_RATE = 0.1


class SeenNgrams:
    """Where the short sequences of a text were seen last.

    Args:
        token_ids: The text's beginning, which somebody else wrote.
    """

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._token_ids: list[int] = []
        self._next_place: dict[tuple[int, ...], int] = {}
        self._rates = dict(_FIRST_RATES)
        for token_id in token_ids:
            self._add(token_id)

    def __len__(self) -> int:
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text, and learn how well each could have been told before."""
        for token_id in token_ids:
            size, place = self._match()
            if size:
                is_right = self._token_ids[place] == token_id
                self._rates[size] += _LEARNING_RATE * (is_right - self._rates[size])
            self._add(token_id)

    def continuation(self, max_tokens: int, *, min_chance: float = 0.0) -> Sequence[int]:
        """What followed the text's last tokens where they were seen before; empty if never.

        Where that reaches the text's end, the text goes round in circles, and so does this.

        Args:
            max_tokens: Tokens to give, at most.
            min_chance: How likely the last of them must be to come, [0, 1]: by how often the text
                itself went on as before after matches of the same length.

        Returns:
            As many as are likely enough.
        """
        size, place = self._match()
        if not size:
            return ()
        num_likely, chance = 0, 1.0
        while num_likely < max_tokens:
            # Each token that is right makes the match longer by one.
            chance *= self._rates[min(size + num_likely, _SIZES[0])]
            if chance < min_chance:
                break
            num_likely += 1
        following = self._token_ids[place : place + num_likely]
        num_rounds = -(-num_likely // len(following)) if following else 0
        return (following * num_rounds)[:num_likely]

    def _match(self) -> tuple[int, int]:
        """How many of the last tokens were seen before, and the place behind them; 0 if none."""
        for size in _SIZES:
            place = self._next_place.get(tuple(self._token_ids[-size:]))
            if place is not None:
                return size, place
        return 0, 0

    def _add(self, token_id: int) -> None:
        place = len(self._token_ids)
        for size in _SIZES:
            if place >= size:
                self._next_place[tuple(self._token_ids[place - size :])] = place
        self._token_ids.append(token_id)
