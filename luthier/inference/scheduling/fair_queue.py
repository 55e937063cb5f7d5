"""Who waits for a row, and whose turn is next.

```
    tenants (weighted turns)  ─►  their adapters (turns)  ─►  requests (in the order they came)
              priorities and ageing order the requests of one tenant, never those of two
```
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

Flow = tuple[str, str]


class QueuedRow(Protocol):
    """What waits.

    Attributes:
        arrival: Its number among all that came; the queue's to set.
        arrival_step: When it came; the queue's to set.
    """

    arrival: int
    arrival_step: int

    @property
    def tenant(self) -> str:
        """On whose behalf it runs."""

    @property
    def turn_key(self) -> str:
        """Which of its tenant's turns it shares."""

    @property
    def flow(self) -> Flow:
        """Its tenant and its turn key."""

    @property
    def priority(self) -> int:
        """Among the rows of its tenant; more is sooner."""

    @property
    def width(self) -> int:
        """Places that it takes."""


RowT = TypeVar("RowT", bound=QueuedRow)


@dataclass
class _Requests(Generic[RowT]):
    """Waiting rows of one adapter and tenant: by priority, each in the order of arrival."""

    by_priority: dict[int, deque[RowT]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.by_priority.values()))

    def __iter__(self) -> Iterator[RowT]:
        for priority in sorted(self.by_priority, reverse=True):
            yield from self.by_priority[priority]

    def add(self, row: RowT) -> None:
        rows = self.by_priority.setdefault(row.priority, deque())
        place = next((n for n, other in enumerate(rows) if other.arrival > row.arrival), len(rows))
        rows.insert(place if rows and rows[-1].arrival > row.arrival else len(rows), row)

    def remove(self, row: RowT) -> bool:
        rows = self.by_priority.get(row.priority, deque())
        if row not in rows:
            return False
        rows.remove(row)
        if not rows:
            del self.by_priority[row.priority]
        return True


@dataclass
class _Tenant(Generic[RowT]):
    """Waiting rows of one tenant, its adapters in the order of their turns."""

    #: Turns taken, divided by the weight; whoever has taken least is next.
    taken: float = 0.0
    adapters: OrderedDict[str, _Requests[RowT]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self.adapters.values()))


class FairQueue(Generic[RowT]):
    """Waiting rows. Not thread-safe.

    Args:
        ageing_steps: Steps after which a waiting row counts as one priority higher, but never
            higher than the highest that waits beside it.
        weight_of: Of a tenant: turns it gets for each of one that weighs 1.
    """

    def __init__(self, *, ageing_steps: int, weight_of: Callable[[str], int]) -> None:
        self._ageing_steps = ageing_steps
        self._weight_of = weight_of
        self._tenants: OrderedDict[str, _Tenant[RowT]] = OrderedDict()
        self._now = 0
        self._num_arrived = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[RowT]:
        """Every waiting row, in no order that means anything."""
        for tenant in self._tenants.values():
            for requests in tenant.adapters.values():
                yield from requests

    def num_of(self, tenant: str) -> int:
        """Rows of one tenant that wait."""
        return len(self._tenants[tenant]) if tenant in self._tenants else 0

    def tick(self) -> None:
        """A step passes; all that wait grow older."""
        self._now += 1

    def add(self, row: RowT) -> None:
        """Let a new row wait, behind those of its adapter and priority."""
        self._num_arrived += 1
        row.arrival, row.arrival_step = self._num_arrived, self._now
        self._insert(row)

    def put_back(self, row: RowT, *, is_next: bool) -> None:
        """Let a row wait that was taken; it keeps its age and its place among its adapter's.

        Args:
            row: Which.
            is_next: Whether the turn that it was taken for still stands.
        """
        tenant = self._insert(row)
        if is_next:
            tenant.adapters.move_to_end(row.turn_key, last=False)
            tenant.taken -= row.width / self._weight_of(row.tenant)

    def take(self, row: RowT) -> None:
        """Remove a row to run it: a turn of its tenant, and of its adapter."""
        tenant = self._tenants[row.tenant]
        tenant.taken += row.width / self._weight_of(row.tenant)
        self._tenants.move_to_end(row.tenant)
        tenant.adapters.move_to_end(row.turn_key)
        self.remove(row)

    def remove(self, row: RowT) -> bool:
        """Remove a row; False if it does not wait."""
        tenant = self._tenants.get(row.tenant)
        requests = tenant.adapters.get(row.turn_key) if tenant else None
        if tenant is None or requests is None or not requests.remove(row):
            return False
        self._length -= 1
        if not requests.by_priority:
            del tenant.adapters[row.turn_key]
        if not tenant.adapters:
            del self._tenants[row.tenant]
        return True

    def next(
        self, passed: Container[Flow] = (), passed_tenants: Container[str] = ()
    ) -> RowT | None:
        """Whose turn it is.

        Args:
            passed: Tenants with adapters that are not asked.
            passed_tenants: Tenants none of whose adapters is asked.

        Returns:
            A row, which still waits; None if nobody else does.
        """
        for name, tenant in sorted(self._tenants.items(), key=lambda each: each[1].taken):
            row = None if name in passed_tenants else self._next_of(tenant, passed)
            if row is not None:
                return row
        return None

    def _next_of(self, tenant: _Tenant[RowT], passed: Container[Flow]) -> RowT | None:
        highest = max(max(each.by_priority) for each in tenant.adapters.values())
        best: tuple[int, RowT] | None = None
        for requests in tenant.adapters.values():
            level, row = self._first(requests, highest)
            if row.flow not in passed and (best is None or level > best[0]):
                best = (level, row)
        return None if best is None else best[1]

    def _first(self, requests: _Requests[RowT], highest: int) -> tuple[int, RowT]:
        """The row of highest priority, its age counted, and of those the oldest."""
        heads = [rows[0] for rows in requests.by_priority.values()]
        levels = [self._level(row, highest) for row in heads]
        return max(zip(levels, heads, strict=True), key=lambda pair: (pair[0], -pair[1].arrival))

    def _level(self, row: RowT, highest: int) -> int:
        waited = self._now - row.arrival_step
        return min(highest, row.priority + waited // self._ageing_steps)

    def _insert(self, row: RowT) -> _Tenant[RowT]:
        tenant = self._tenants.get(row.tenant)
        if tenant is None:
            # Turns that were not taken while nobody waited are not saved up.
            least = min((each.taken for each in self._tenants.values()), default=0.0)
            tenant = self._tenants[row.tenant] = _Tenant(taken=least)
        tenant.adapters.setdefault(row.turn_key, _Requests()).add(row)
        self._length += 1
        return tenant
