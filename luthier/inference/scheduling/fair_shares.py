"""How a step's tokens are divided: between tenants, then adapters, then rows.

Each level is max-min fair: nobody gets more than it can use, what one cannot use goes to the
others, and of two that could use more neither gets more than the other but for its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier.inference.batch_rows import BatchRow


def fair_shares(
    budget: int, demands: Sequence[int], weights: Sequence[int] | None = None
) -> list[int]:
    """Divide whole tokens.

    Args:
        budget: What there is.
        demands: What each could use.
        weights: How much each counts, >= 1; by default all the same.

    Returns:
        What each gets; in all the budget or all the demands, whichever is less.
    """
    counted = [1] * len(demands) if weights is None else weights
    shares = [0] * len(demands)
    # Whoever needs least for its weight is served first and leaves the rest to the others.
    order = sorted(range(len(demands)), key=lambda index: demands[index] / counted[index])
    total = sum(counted)
    for index in order:
        shares[index] = min(demands[index], -(-budget * counted[index] // total))
        budget -= shares[index]
        total -= counted[index]
    return shares


def shares_of_rows(
    budget: int, rows: Sequence[BatchRow], weight_of: Callable[[str], int]
) -> list[int]:
    """Divide the tokens of a step that are for prompts.

    Args:
        budget: What there is; at least one for each row.
        rows: Those with something to compute.
        weight_of: Of a tenant.

    Returns:
        What each row gets, at least 1.
    """
    # One for each row first, so that none stands still; the rest by levels.
    demands = [row.num_pending - 1 for row in rows]
    shares = [1] * len(rows)
    budget -= len(rows)
    tenants = _grouped(range(len(rows)), [row.tenant for row in rows])
    weights = [weight_of(rows[members[0]].tenant) for members in tenants]
    for members, of_tenant in _divided(budget, tenants, demands, weights):
        adapters = _grouped(members, [row.adapter_key for row in rows])
        for own, of_adapter in _divided(of_tenant, adapters, demands):
            of_rows = fair_shares(of_adapter, [demands[index] for index in own])
            for index, share in zip(own, of_rows, strict=True):
                shares[index] += share
    return shares


def _grouped(indices: Sequence[int], names: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(names[index], []).append(index)
    return list(groups.values())


def _divided(
    budget: int,
    groups: list[list[int]],
    demands: Sequence[int],
    weights: Sequence[int] | None = None,
) -> list[tuple[list[int], int]]:
    wanted = [sum(demands[index] for index in members) for members in groups]
    return list(zip(groups, fair_shares(budget, wanted, weights), strict=True))
