from __future__ import annotations

import torch

from luthier.inference.memory.prefix_cache import PrefixCache, chained_key

BLOCK = torch.zeros(4, 3, 5, 4)


def cache_of(num_blocks: int, *keys: str) -> PrefixCache:
    cache = PrefixCache(num_blocks * BLOCK.nbytes)
    for key in keys:
        cache.put(key, BLOCK.clone())
    return cache


def known(cache: PrefixCache, keys: str) -> list[bool]:
    return [key in cache for key in keys]


def test_blocks_are_dropped_least_recently_used_first() -> None:
    cache = cache_of(2, "a", "b")
    cache.touch(["a"])
    cache.put("c", BLOCK)
    assert known(cache, "abc") == [True, False, True]
    assert cache.get("c") is BLOCK
    assert len(cache) == 2
    assert cache.num_bytes == 2 * BLOCK.nbytes


def test_looking_is_no_use() -> None:
    cache = cache_of(2, "a", "b")
    assert cache.get("a") is not None
    cache.put("c", BLOCK)
    assert known(cache, "abc") == [False, True, True]


def test_of_a_chain_the_end_goes_first() -> None:
    cache = cache_of(3, "a", "b", "c")
    cache.touch(["a", "b", "c"])
    cache.put("d", BLOCK)
    cache.put("e", BLOCK)
    assert known(cache, "abcde") == [True, False, False, True, True]


def test_a_block_larger_than_the_limit_is_not_kept() -> None:
    cache = PrefixCache(10)
    cache.put("a", BLOCK)
    assert cache.get("a") is None
    assert cache.num_bytes == 0


def test_a_name_known_already_keeps_its_block() -> None:
    cache = cache_of(2, "a")
    before = cache.get("a")
    cache.put("a", BLOCK)
    assert cache.get("a") is before
    assert cache.num_bytes == BLOCK.nbytes


def test_clearing_drops_all() -> None:
    cache = cache_of(2, "a", "b")
    cache.clear()
    assert len(cache) == cache.num_bytes == 0


def test_a_name_depends_on_everything_before_and_on_each_token() -> None:
    names = {
        chained_key(parent, ids)
        for parent in ("", "adapter")
        for ids in ([1, 2], [2, 1], [1], [12], [1, 2, 0], [258], [1, 1])
    }
    assert len(names) == 14
    assert chained_key("x", [1, 2]) == chained_key("x", (1, 2))
