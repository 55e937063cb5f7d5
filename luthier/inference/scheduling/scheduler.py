"""Which rows run in the next step, and how much of each.

Rows that decode go first, one token each; what is left of the step's token budget goes to prompts,
so a long prompt is computed over several steps and stalls nobody. The last tokens of prompts that
are all but done may come on top, a quarter of the budget in all: a pass of their own would cost
more. Rows join and leave between any two steps.

Nobody's flood keeps another waiting. A *flow* is one adapter of one tenant. Slots, and the prompt
tokens of a step, are shared by tenants (by weight), within a tenant by its adapters, within a flow
in order of arrival. A flow with less than its share takes the place of the youngest row of the one
with most; that row waits, keeps what it said and goes on later with the same tokens.

Bounds on the steps until the first token of a flow's first request, N tokens long, priorities and
weights equal, whatever and however much others submit. R is ``max_rows``, M is ``max_step_tokens``,
P = min(32, M // 4) a piece; T tenants are active, S adapters of its own tenant, F flows in all:

- ``1 + R // 4 + ceil((N + P) / (1 + (M - R) // T // S))`` while T · S <= R and the cache holds the
  request beside what runs: it is admitted in the next step, its share of the steps is its own, and
  pieces that others have a claim on come before its own;
- ``(F + 1) · (L + P + R // 4 + turn_tokens)`` in any case, L the longest prompt with what was
  generated after it: when there are more flows than slots, or memory is short, flows take turns of
  ``turn_tokens`` generated tokens each.

The beams of one request (``beam_rows``) take a slot each and come and go together; their flow is
their own, and at most ``max_beam_rows`` of them run at once. Where slots are too few for beams
whose turn it is, what becomes free is kept for them. With searches of up to W beams about, the
first bound holds for other requests while T · (S + 2) · W <= R, the second for all of them.

A request of a priority that is lower by g than the highest that waits in its tenant is treated like
one that came g · ``ageing_steps`` steps later. Later requests of a flow wait for the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import alog
import torch

from luthier.errors import EngineError
from luthier.inference.batch_rows import BatchRow, RowSlice
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.scheduling.fair_queue import FairQueue, Flow
from luthier.inference.scheduling.fair_shares import shares_of_rows
from luthier.inference.scheduling.preemption import first_to_go, may_pass, victims_for
from luthier.inference.scheduling.scheduling_rules import SchedulingRules

log = alog.use_channel(__name__)

#: Tokens of a prompt that are computed at once, at least, in a step with room for four such pieces.
_LEAST_PIECE = 32


class Scheduler:
    """Plans steps. Not thread-safe: the engine's lock guards it.

    Args:
        memory: Keys and values.
        rules: Limits.
    """

    def __init__(self, memory: KvMemory, rules: SchedulingRules) -> None:
        self._memory = memory
        self._rules = rules
        self._owed: dict[BatchRow, int] = {}  # prompt tokens, to rows that have some to compute
        self._computing: dict[str, BatchRow] = {}  # who computes a prefix block at present
        self.waiting: FairQueue[BatchRow] = FairQueue(
            ageing_steps=rules.ageing_steps, weight_of=rules.weight_of
        )
        self.running: list[BatchRow] = []  # in the order in which they were admitted
        self._failed: list[tuple[BatchRow, EngineError]] = []

    def plan(self) -> list[RowSlice]:
        """Decide the next step; may take, move and free ranges.

        Returns:
            One slice for each row that takes part; empty if nothing can run.
        """
        self.waiting.tick()
        self._computing = {
            key: row for key, row in self._computing.items() if _is_computing_prompt(row)
        }
        for row in self.running:
            if row.waits_for_head and row.head.num_computed >= row.num_first:
                self._memory.share(row)
        decoding = [
            row for row in self._computable() if row.num_pending == 1 and not _is_unread(row)
        ]
        for row in decoding:
            self._make_room(row)
        self._admit()
        # A row that had to make way takes no part.
        slices = [RowSlice(row, row.num_computed, 1) for row in decoding if row.kv is not None]
        prompts = [row for row in self._computable() if row not in decoding]
        return slices + self._divide(self._rules.step_tokens - len(slices), prompts)

    def take_failed(self) -> list[tuple[BatchRow, EngineError]]:
        """Rows that could not be admitted since this was asked last, and why; they are forgotten
        and hold nothing."""
        failed, self._failed = self._failed, []
        return failed

    def release(self, row: BatchRow, *, is_broken: bool = False) -> None:
        """Forget a row that ended, wherever it is; frees what it holds.

        Args:
            row: Which; no effect for one that is forgotten already.
            is_broken: Whether others must not start from what it computed.
        """
        row.head.leader = None  # or the leaders of leaders would stay as long as any follows
        if self.waiting.remove(row.head):
            return
        if row in self.running:
            self._leave(row)
            if is_broken:
                self._memory.drop(row)
            else:
                self._give_back(row)

    def take_all(self) -> list[BatchRow]:
        """Forget every row; nothing that went wrong before can hinder that."""
        rows = [*self.running, *self.waiting]
        for row in rows:
            self.release(row, is_broken=True)
        return rows

    def _computable(self) -> list[BatchRow]:
        """Running rows with something to compute now: no beams that wait for each other."""
        return [row for row in self.running if row.num_pending > 0 and not row.waits_for_head]

    def _give_back(self, row: BatchRow) -> None:
        """Take a row's ranges, keeping what others may start from, if that can be done."""
        try:
            self._memory.release(row)
        except torch.AcceleratorError:
            raise  # the device's state is lost, and with it every row
        except Exception:
            log.error("What a row has computed cannot be kept", exc_info=True)
            self._memory.drop(row)

    def _leave(self, row: BatchRow) -> None:
        for member in row.members:
            self.running.remove(member)

    def _divide(self, budget: int, rows: list[BatchRow]) -> list[RowSlice]:
        """The step's slices of prompts."""
        slices: list[RowSlice] = []
        unread = [row for row in rows if _is_unread(row)]
        for row in unread:
            # An encoder sees all of its input at once, so that goes in whole, over budget or not.
            if budget > 0:
                slices.append(RowSlice(row, row.num_computed, row.num_pending))
                budget -= row.num_encoder + row.num_pending
        prompts = [row for row in rows if row not in unread]
        shares = shares_of_rows(max(budget, len(prompts)), prompts, self._rules.weight_of)
        return slices + self._in_pieces(max(budget, len(prompts)), prompts, shares)

    def _in_pieces(self, budget: int, rows: list[BatchRow], shares: list[int]) -> list[RowSlice]:
        """Give whole pieces to those who are owed most, not crumbs to all of them.

        A row's adapter is read once for each of its pieces, however small. Over the steps each row
        gets what its shares add up to; who waits for more than a piece has no further claim.
        """
        least = min(_LEAST_PIECE, self._rules.step_tokens // 4)
        # Rows leave that had more than their due, so claims on it must end somewhere: at a piece.
        self._owed = {
            row: min(self._owed.get(row, 0), least) + share
            for row, share in zip(rows, shares, strict=True)
        }
        counts: dict[BatchRow, int] = {}
        # Who would have its piece first if each got its share at every step (fair queueing).
        due = {
            row: (min(row.num_pending, least) - self._owed[row]) / share
            for row, share in zip(rows, shares, strict=True)
        }
        for row in sorted(rows, key=lambda row: due[row]):
            count = min(row.num_pending, max(self._owed[row], least), budget)
            if count > 0:
                counts[row] = count
                self._owed[row] -= count
                budget -= count
        self._stretch(counts)
        return [RowSlice(row, row.num_computed, counts[row]) for row in rows if row in counts]

    def _stretch(self, counts: dict[BatchRow, int]) -> None:
        """Let prompts end in this step that would need a small pass more; takes from nobody."""
        spare = self._rules.step_tokens // 4
        for row, count in counts.items():
            rest = row.num_pending - count
            if 0 < rest <= spare:
                counts[row] += rest
                spare -= rest

    def _admit(self) -> None:
        """Let rows in while there is room, or while there are flows that must make way."""
        passed: set[Flow] = set()
        passed_tenants: set[str] = set()
        followers: list[BatchRow] = []
        kept_for: BatchRow | None = None  # beams that what becomes free is kept for
        may_be_beam = True
        while len(followers) < self._rules.max_rows:
            row = self.waiting.next(passed, passed_tenants)
            if row is None:
                break
            must_wait = kept_for is not None and not may_pass(
                row, kept_for, self.running, self._rules
            )
            if must_wait or (row.is_beam and not may_be_beam):
                passed.add(row.flow)
            elif self._follows_another(row):
                self.waiting.remove(row)
                followers.append(row)
            elif self._make_way(row):
                self._start(row)
            elif row.flow in _flows(self.running):
                passed.add(row.flow)
            elif self._num_missing(row) > 0:
                break  # what becomes free is kept for it, or smaller ones would always come first
            elif self._rules.lacks_beam_rows(row, self.running):
                may_be_beam = False
                passed.add(row.flow)
            else:
                if row.width > 1 and kept_for is None:
                    kept_for = row
                passed_tenants.add(row.tenant)  # no other flow of it has a better claim to a slot
        for row in followers:
            self.waiting.put_back(row, is_next=False)

    def _start(self, row: BatchRow) -> None:
        try:
            is_admitted = self._memory.admit(row)
        except torch.AcceleratorError:
            raise  # the device's state is lost, and with it every row
        except Exception as error:
            log.error("A row cannot be admitted", exc_info=True)
            self._memory.drop(row)
            self.waiting.remove(row)
            self._failed.append((row, EngineError(f"generation failed: {error}")))
            return
        if not is_admitted:
            raise AssertionError("way was made for this row, and there is none")
        self.waiting.take(row)
        for member in row.members:
            member.turn_start = len(member.generated_ids)
            self.running.append(member)
        for block in self._memory.missing_blocks(row):
            self._computing.setdefault(block.key, row)

    def _follows_another(self, row: BatchRow) -> bool:
        """True while a row of the same flow computes what this one could start from.

        Nothing is lost by waiting: the other has this row's share meanwhile. A row follows one
        other at most.
        """
        block = self._memory.next_block(row) if self._computing else None
        leader = self._computing.get(block.key) if block else None
        if leader is None or block is None or leader.num_computed >= block.stop:
            return False
        if not _is_computing_prompt(leader) or leader.flow != row.flow:
            return False
        row.leader = row.leader or leader
        return row.leader is leader

    def _num_missing(self, row: BatchRow) -> int:
        return self._memory.num_needed(row) - self._memory.allocator.num_free

    def _make_way(self, row: BatchRow) -> bool:
        """Preempt until there are slots and memory for ``row``; nobody if that cannot be."""
        victims = victims_for(row, self.running, self._num_missing(row), self._rules)
        for victim in victims or ():
            self._preempt(victim)
        return victims is not None

    def _make_room(self, row: BatchRow) -> None:
        """Make a row's range hold all its positions; the row that goes may be this one."""
        while row.kv is not None and not self._memory.grow(row, row.num_positions):
            self._preempt(first_to_go(self.running, self._rules))

    def _preempt(self, row: BatchRow) -> None:
        """Take the places of a row and its members away; it goes on later from its tokens and what
        is left of its keys and values."""
        self._leave(row)
        self._give_back(row)
        self.waiting.put_back(row.head, is_next=not self._rules.had_turn(row))


def _flows(rows: Iterable[BatchRow]) -> set[Flow]:
    return {row.flow for row in rows}


def _is_computing_prompt(row: BatchRow) -> bool:
    return row.kv is not None and row.num_pending > 1


def _is_unread(row: BatchRow) -> bool:
    """True for a row whose encoder did not run yet."""
    return row.num_encoder > 0 and not row.encoded.is_read
