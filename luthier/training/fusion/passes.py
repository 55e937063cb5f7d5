"""Which micro-batches of a round share a pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from luthier.training.fusion.fused_network import FusedPart


def passes_of(parts: Sequence[FusedPart], limit: int) -> list[list[int]]:
    """Who shares a pass with whom: one kind, and where rows are padded, rows of like width.

    Args:
        parts: Of one round, each of at most ``limit`` tokens.
        limit: Most tokens of a pass, padding included.

    Returns:
        Indices of parts by pass, each in order; no empty pass.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, part in enumerate(parts):
        # Within a class no row is padded to more than twice its width.
        groups.setdefault((part.kind, part.width.bit_length()), []).append(index)
    passes = []
    for group in groups.values():
        widest = max(parts[index].width for index in group)
        sizes = [
            part.num_tokens if not widest else part.num_tokens // part.width * widest
            for part in (parts[index] for index in group)
        ]
        fitting = [max(1, min(size, limit)) for size in sizes]
        passes += [[group[index] for index in indices] for indices in share_out(fitting, limit)]
    return passes


def share_out(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Share items out to as few even groups as the limit allows.

    Args:
        sizes: Of the items, each at most ``limit``.
        limit: Most of a group.

    Returns:
        Indices by group, each in order; no empty group.

    Example:
        >>> share_out([5, 3, 2, 4], 8)
        [[0, 2], [1, 3]]
    """
    num_groups = max(1, -(-sum(sizes) // limit)) if sizes else 0
    while True:
        groups: list[list[int]] = [[] for _ in range(num_groups)]
        filled = [0] * num_groups
        for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
            emptiest = min(range(num_groups), key=filled.__getitem__)
            groups[emptiest].append(index)
            filled[emptiest] += sizes[index]
        if max(filled, default=0) <= limit:
            return [sorted(group) for group in groups if group]
        num_groups += 1
