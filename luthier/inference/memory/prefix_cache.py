"""Keys and values of prompt prefixes, kept across requests.

A prefix is named by everything that its keys and values depend on: the base model (there is one
cache per engine, so it goes without saying), the adapter's content and the tokens. Names are
chained, so that one lookup per block finds the longest known prefix:

```
    adapter's content hash ──► H(., tokens 0-15) ──► H(., tokens 16-31) ──► ...
    (names the virtual tokens)   first block            second block
      and the tenant's name
```

An adapter that was tuned again in place has another content hash, so nothing made with its old
tensors can be found. Blocks are copies outside the arena: a row reads one contiguous range, so it
gets its prefix copied in, which takes a thousandth of the time of computing it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

PREFIX_BLOCK_TOKENS = 16


@dataclass(frozen=True)
class PrefixBlock:
    """Positions [start, stop) of a row.

    Args:
        key: Names everything from position 0 to ``stop``.
        start: Where the block before it ends.
        stop: One past its last position.
    """

    key: str
    start: int
    stop: int


def chained_key(parent: str, token_ids: Iterable[int]) -> str:
    """The name of a block.

    Args:
        parent: Name of all that comes before it; the adapter's content hash for the first tokens.
        token_ids: The block's own.

    Returns:
        Hex, of 256 bits: nobody can make two prompts that share a name.
    """
    ids = array("q", token_ids)
    name = parent.encode(errors="surrogatepass")  # a tenant's may have half a character
    return hashlib.blake2b(name + b"\0" + ids.tobytes(), digest_size=32).hexdigest()


def tenants_key(parent: str, tenant: str) -> str:
    """What the first tokens of a tenant's prompt come after.

    Args:
        parent: As for ``chained_key``.
        tenant: "" is the tenant of all who name none.

    Returns:
        A name that no other tenant has.
    """
    return chained_key(f"{parent} of {tenant}", ()) if tenant else parent


class PrefixCache:
    """Blocks by name; the least recently used are dropped first. Not thread-safe.

    Args:
        max_bytes: Of all blocks together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._blocks: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: str) -> bool:
        return key in self._blocks

    def get(self, key: str) -> torch.Tensor | None:
        """[2·L, K, T, Dh], or None. Does not count as a use: ``touch`` does."""
        return self._blocks.get(key)

    def put(self, key: str, tokens: torch.Tensor) -> None:
        """Keep a block, dropping others until it fits; one that never fits is not kept.

        Args:
            key: Its name. A block of that name that is known already stays.
            tokens: [2·L, K, T, Dh], owned by the cache from now on.
        """
        if tokens.nbytes > self.max_bytes:
            return
        if key not in self._blocks:
            self._blocks[key] = tokens
            self.num_bytes += tokens.nbytes
        self._blocks.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self.num_bytes -= dropped.nbytes

    def touch(self, keys: Sequence[str]) -> None:
        """Note a use of a chain, given from its first block on.

        The first block ends up as the most recently used: without it the others cannot be found.
        """
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.num_bytes = 0
