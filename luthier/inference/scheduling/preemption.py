"""Who makes way: which rows give up their places when others have a better claim to them.

A claim is better if its tenant (by weight), or within a tenant its flow, would have no more than
the other even with the place. A flow without any place may also take that of a row which had its
turn, unless its tenant has as much as the other's. Of all that must yield, the first is of the
tenant and flow with most, then one that had its turn, then the youngest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.inference.batch_rows import BatchRow
from luthier.inference.scheduling.scheduling_rules import SchedulingRules


def first_to_go(rows: Sequence[BatchRow], rules: SchedulingRules) -> BatchRow:
    """Who makes way so that the others can go on.

    The oldest row of those that had no turn is never asked while no flow has more than one, so
    there is always one that gets on.

    Args:
        rows: Who holds places, in the order of admission; not none.
        rules: Weights and turns.

    Returns:
        One of them, with whose members it goes.
    """
    # A search counts as one, or it would always be the first.
    heads = [row for row in rows if row.head is row]
    return _Holdings(heads, rules).last_in_line(heads)


def victims_for(
    row: BatchRow, running: Sequence[BatchRow], num_missing: int, rules: SchedulingRules
) -> list[BatchRow] | None:
    """Who makes way so that a row can come in.

    Args:
        row: Who waits.
        running: Who holds places, in the order of admission.
        num_missing: Tokens of memory that it lacks.
        rules: Limits, weights and turns.

    Returns:
        Those that go, each with its members; none if there is room. None if there cannot be
        enough: others have as good a claim.
    """
    stays, victims = list(running), list[BatchRow]()
    while num_missing > 0 or rules.lacks_rows(row, stays) or rules.lacks_beam_rows(row, stays):
        victim = _first_to_yield(row, stays, rules)
        if victim is None:
            return None
        stays = [each for each in stays if each.head is not victim.head]
        victims.append(victim)
        num_missing -= _num_held(victim)
    return victims


def may_pass(
    row: BatchRow, beams: BatchRow, running: Sequence[BatchRow], rules: SchedulingRules
) -> bool:
    """Whether a row may take what is free before beams whose turn it is: if it could take it from
    them.

    Args:
        row: Who waits as well.
        beams: The first of them.
        running: Who holds places.
        rules: Weights.
    """
    holdings = _Holdings(running, rules)
    if row.tenant == beams.tenant:
        return holdings.flows[row.flow] + row.width <= holdings.flows[beams.flow]
    return holdings.load(row.tenant, row.width) <= holdings.load(beams.tenant)


class _Holdings:
    """How many places each tenant and each flow has."""

    def __init__(self, rows: Sequence[BatchRow], rules: SchedulingRules) -> None:
        self._rules = rules
        self._tenants = Counter(row.tenant for row in rows)
        self.flows = Counter(row.flow for row in rows)

    def load(self, tenant: str, more: int = 0) -> float:
        """Places of a tenant for its weight, if it had some more."""
        return (self._tenants[tenant] + more) / self._rules.weight_of(tenant)

    def must_yield(self, row: BatchRow, wanting: BatchRow) -> bool:
        """Whether another has a better claim to a row's place."""
        may_take_turn = not self.flows[wanting.flow] and self._rules.had_turn(row)
        if row.tenant == wanting.tenant:
            has_less = self.flows[row.flow] - row.width >= self.flows[wanting.flow] + wanting.width
            return has_less or may_take_turn
        if self.load(row.tenant, -row.width) >= self.load(wanting.tenant, wanting.width):
            return True
        return may_take_turn and self.load(row.tenant) > self.load(wanting.tenant)

    def last_in_line(self, rows: Sequence[BatchRow]) -> BatchRow:
        """The row with the weakest claim to its place; the youngest of those that are equal."""
        return max(reversed(rows), key=self._excess)

    def _excess(self, row: BatchRow) -> tuple[float, int, bool]:
        had_turn = len(self.flows) > 1 and self._rules.had_turn(row)
        return self.load(row.tenant), self.flows[row.flow], had_turn


def _first_to_yield(
    wanting: BatchRow, rows: Sequence[BatchRow], rules: SchedulingRules
) -> BatchRow | None:
    """Who makes way first for one that wants a place, or None if each has as good a claim."""
    holdings = _Holdings(rows, rules)
    only_beams = rules.lacks_beam_rows(wanting, rows)  # others' places are of no use
    yielding = [
        row for row in rows if (row.is_beam or not only_beams) and holdings.must_yield(row, wanting)
    ]
    return holdings.last_in_line(yielding) if yielding else None


def _num_held(row: BatchRow) -> int:
    """Tokens of memory that a row has with its members."""
    held = [row.encoded.kv, *(member.kv for member in row.members)]
    return sum(each.capacity for each in held if each is not None)
