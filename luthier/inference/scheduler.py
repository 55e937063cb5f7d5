"""Which rows run in the next step, and how much of each.

Rows that decode go first, one token each; what is left of the step's token budget is shared by
prompts, so a long prompt is computed over several steps and stalls nobody. New rows are admitted
whenever there is room: they join and leave between any two steps.

Fairness: adapters take turns. With S adapters waiting, the n-th request of one is admitted after at
most n · S admissions, however many requests the others have.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.kv_cache import KvRange, RangeAllocator

_HEADROOM = 64  # tokens a range gets beyond what its row needs now


class FairQueue:
    """Waiting rows; adapters take turns, each adapter's own rows come in order."""

    def __init__(self) -> None:
        self._by_adapter: OrderedDict[str, deque[BatchRow]] = OrderedDict()
        self._returning: deque[BatchRow] = deque()

    def __len__(self) -> int:
        return len(self._returning) + sum(map(len, self._by_adapter.values()))

    def __iter__(self) -> Iterator[BatchRow]:
        """In the order in which turns come now, one round after another."""
        yield from self._returning
        queues = [list(queue) for queue in self._by_adapter.values()]
        for turn in range(max(map(len, queues), default=0)):
            yield from (queue[turn] for queue in queues if turn < len(queue))

    def add(self, row: BatchRow) -> None:
        """Let a new row wait."""
        self._by_adapter.setdefault(row.adapter_key, deque()).append(row)

    def add_first(self, row: BatchRow) -> None:
        """Let a row wait that ran before; it goes before all new ones."""
        self._returning.appendleft(row)

    def take(self, row: BatchRow) -> None:
        """Remove a row to run it: its adapter's next turn comes after the others'."""
        self.remove(row)
        if row.adapter_key in self._by_adapter:
            self._by_adapter.move_to_end(row.adapter_key)

    def remove(self, row: BatchRow) -> bool:
        """Remove a row; False if it does not wait."""
        if row in self._returning:
            self._returning.remove(row)
            return True
        queue = self._by_adapter.get(row.adapter_key, deque())
        if row not in queue:
            return False
        queue.remove(row)
        if not queue:
            del self._by_adapter[row.adapter_key]
        return True


class Scheduler:
    """Plans steps. Not thread-safe: the engine's lock guards it.

    Args:
        allocator: Of the arena.
        num_ready: Virtual tokens of a row that need not be computed again.
        move: Copies (source, target, count) tokens within the arena.
        max_rows: Rows that run at the same time, at most.
        max_step_tokens: Tokens of one step, at most; not less than ``max_rows``.
    """

    def __init__(
        self,
        allocator: RangeAllocator,
        *,
        num_ready: Callable[[BatchRow], int],
        move: Callable[[int, int, int], None],
        max_rows: int,
        max_step_tokens: int,
    ) -> None:
        self._allocator = allocator
        self._num_ready = num_ready
        self._move = move
        self._max_rows = max_rows
        self._max_step_tokens = max(max_step_tokens, max_rows)
        self.waiting = FairQueue()
        self.running: list[BatchRow] = []  # in the order in which they were admitted

    def plan(self) -> list[RowSlice]:
        """Decide the next step; may take, move and free ranges.

        Returns:
            One slice for each row that takes part; empty if nothing can run.
        """
        budget = self._max_step_tokens
        slices: list[RowSlice] = []
        for row in [row for row in self.running if row.num_pending == 1]:
            if self._has_room(row, row.num_positions):
                slices.append(RowSlice(row, row.num_computed, 1))
                budget -= 1
        prompts = [row for row in self.running if row.num_pending > 1]
        for index, row in enumerate(prompts):
            count = min(row.num_pending, -(-budget // (len(prompts) - index)))
            if count > 0 and self._has_room(row, row.num_computed + count):
                slices.append(RowSlice(row, row.num_computed, count))
                budget -= count
        # A row that had to give its range back takes no part.
        slices = [each for each in slices if each.row.kv is not None]
        return [*slices, *self._admit(budget)]

    def release(self, row: BatchRow) -> None:
        """Forget a row that ended, wherever it is; frees its range."""
        if self.waiting.remove(row):
            return
        if row in self.running:
            self.running.remove(row)
            self._free(row)

    def take_all(self) -> list[BatchRow]:
        """Forget every row."""
        rows = [*self.running, *self.waiting]
        for row in rows:
            self.release(row)
        return rows

    def _admit(self, budget: int) -> list[RowSlice]:
        slices: list[RowSlice] = []
        computing = {row.shared_key for row in self.running if row.num_computed < row.num_virtual}
        for row in list(self.waiting):
            if budget <= 0 or len(self.running) >= self._max_rows:
                break
            if row.shared_key and row.shared_key in computing:
                continue  # its soft prompt is ready after the step that computes it
            if not self._take_first(row):
                break
            self.waiting.take(row)
            self.running.append(row)
            start = min(self._num_ready(row), row.num_virtual, row.num_positions - 1)
            if start < row.num_virtual:
                computing.add(row.shared_key)
            # An encoder sees all of its input at once, so that goes in whole, over budget or not.
            budget -= row.num_encoder
            count = min(row.num_positions - start, max(1, budget))
            slices.append(RowSlice(row, start, count))
            budget -= count
        return slices

    def _has_room(self, row: BatchRow, num_tokens: int) -> bool:
        """Make the row's range hold ``num_tokens``, at the cost of younger rows if need be."""
        while row.kv is not None:
            if self._grow(row, row.kv, num_tokens):
                return True
            self._preempt(self.running[-1])
        return False

    def _grow(self, row: BatchRow, held: KvRange, num_tokens: int) -> bool:
        if num_tokens <= held.capacity:
            return True
        for wanted in (self._with_headroom(row, num_tokens), num_tokens):
            if self._allocator.extend(held, wanted):
                return True
        larger = self._take(row, num_tokens)
        if larger is None:
            return False
        self._move(held.start, larger.start, row.num_computed)
        self._allocator.free(held)
        row.kv = larger
        return True

    def _take_first(self, row: BatchRow) -> bool:
        """Take the ranges that an admitted row needs; all or none."""
        if row.num_encoder:
            row.encoder_kv = self._allocator.take(row.num_encoder)
            if row.encoder_kv is None:
                return False
        row.kv = self._take(row, row.num_positions)
        if row.kv is None:
            self._free(row)
        return row.kv is not None

    def _take(self, row: BatchRow, num_tokens: int) -> KvRange | None:
        wanted = self._allocator.take(self._with_headroom(row, num_tokens))
        return wanted or self._allocator.take(num_tokens)

    def _with_headroom(self, row: BatchRow, num_tokens: int) -> int:
        return min(row.largest_size, num_tokens + max(_HEADROOM, num_tokens // 2))

    def _preempt(self, row: BatchRow) -> None:
        """Take a row's range away; it will be computed again from its tokens."""
        self.running.remove(row)
        self._free(row)
        self.waiting.add_first(row)

    def _free(self, row: BatchRow) -> None:
        for held in (row.kv, row.encoder_kv):
            if held is not None:
                self._allocator.free(held)
        row.kv = row.encoder_kv = None
        row.num_computed = 0
