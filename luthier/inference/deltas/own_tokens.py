"""Embeddings of a step's tokens, where rows may have tokens that only their adapter knows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from luthier.adapters.added_tokens import OwnTokens


def look_up_tokens(
    embed: nn.Module,
    token_ids: list[int],
    parts: Iterable[tuple[OwnTokens | None, int]],
    *,
    device: torch.device,
) -> torch.Tensor:
    """Embeddings of tokens that lie end to end.

    Args:
        embed: The base model's input embeddings.
        token_ids: Of all parts; changed.
        parts: Neighbouring tokens: whose own tokens may be among them, and how many they are.
        device: Where the embeddings are.

    Returns:
        [1, N, D]; what a part's own tokens say counts in that part alone.
    """
    places: list[int] = []
    rows: list[torch.Tensor] = []
    start = 0
    for own, count in parts:
        for place in range(start, start + count) if own is not None else ():
            assert own is not None
            index = own.place_of.get(token_ids[place])
            if index is not None:
                places.append(place)
                rows.append(own.rows[index])
                token_ids[place] = 0  # the base has no row for its own id, perhaps
        start += count
    embeddings: torch.Tensor = embed(torch.tensor([token_ids], dtype=torch.long, device=device))
    if rows:
        # Some models scale what they look up.
        scale = getattr(embed, "embed_scale", None)
        own_rows = torch.stack(rows) if scale is None else torch.stack(rows) * scale
        embeddings[0, places] = own_rows.to(embeddings)
    return embeddings
