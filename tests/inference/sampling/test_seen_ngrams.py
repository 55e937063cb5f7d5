"""Where a text's last tokens were seen before; the reference is a search through all of it."""

from __future__ import annotations

import random

import pytest

from luthier.inference.sampling.seen_ngrams import SeenNgrams


def searched(token_ids: list[int], max_tokens: int) -> list[int]:
    for size in (4, 3, 2):
        for start in range(len(token_ids) - size - 1, -1, -1):
            if token_ids[start : start + size] == token_ids[-size:]:
                text = list(token_ids)
                while len(text) < start + size + max_tokens:
                    text.append(text[len(text) - (len(token_ids) - start - size)])
                return text[start + size : start + size + max_tokens]
    return []


def test_the_continuation_is_that_of_the_latest_and_longest_match() -> None:
    generator = random.Random(3)
    token_ids: list[int] = []
    seen = SeenNgrams()
    for _ in range(400):
        token_ids.append(generator.randrange(4))
        seen.extend(token_ids[-1:])
        assert list(seen.continuation(5)) == searched(token_ids, 5)
        assert list(SeenNgrams(token_ids).continuation(5)) == searched(token_ids, 5)
    assert len(seen) == 400


def test_a_longer_match_is_likelier_to_go_on() -> None:
    def num_likely(min_chance: float, *last: int) -> int:
        return len(
            SeenNgrams([1, 2, 3, 4, 9, 8, 7, 6, *last]).continuation(9, min_chance=min_chance)
        )

    assert [num_likely(0.6, *last) for last in ((4,), (3, 4), (2, 3, 4), (1, 2, 3, 4))] == [
        0,
        0,
        1,
        2,
    ]
    assert num_likely(0.09, 4) == 0
    assert num_likely(0.3, 1, 2, 3, 4) == 5


def test_what_comes_as_foretold_makes_more_likely_and_what_does_not_less() -> None:
    repeating = SeenNgrams(list(range(100)))
    repeating.extend(range(40))
    assert len(repeating.continuation(20, min_chance=0.5)) == 20
    changing = SeenNgrams(range(100))
    for first in range(0, 80, 2):
        changing.extend([first, first + 1, 500 + first])  # every pair is known, what follows is not
    changing.extend([90, 91])
    assert list(changing.continuation(20, min_chance=0.1)) == []
    assert list(changing.continuation(2)) == [92, 93]


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2, 3, 4]])
def test_a_text_without_a_match_has_no_continuation(token_ids: list[int]) -> None:
    assert list(SeenNgrams(token_ids).continuation(4)) == []


def test_none_can_be_asked_for() -> None:
    assert list(SeenNgrams([1, 1, 1]).continuation(0)) == []
