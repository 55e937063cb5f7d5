"""Where a text's last tokens were seen before; the reference is a search through all of it."""

from __future__ import annotations

import random

from luthier.inference.sampling.seen_ngrams import SeenNgrams


def searched(token_ids: list[int], max_tokens: int) -> list[int]:
    for size in (3, 2):
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
    assert len(seen) == 400


def test_a_longer_match_can_be_asked_for() -> None:
    seen = SeenNgrams()
    seen.extend([1, 2, 9, 8, 1, 2])
    assert list(seen.continuation(2)) == [9, 8]
    assert list(seen.continuation(2, min_match=3)) == []
    seen.extend([9])
    assert list(seen.continuation(2, min_match=3)) == [8, 1]


def test_a_text_without_a_match_has_no_continuation() -> None:
    seen = SeenNgrams()
    assert list(seen.continuation(4)) == []
    seen.extend([1, 2, 3, 4])
    assert list(seen.continuation(4)) == []
