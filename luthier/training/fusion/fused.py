"""Several trainings over one frozen base model, together in one process.

Each keeps its options, data, order, optimizer, schedule, callbacks, folders; only forward and
backward of the base are shared. In each round, every training hands out its next micro-batch; they
are laid into as few passes as the token threshold allows, and each gets its loss back::

    job A: [mb] ─┐                      ┌─► A goes on: clip, update, evaluation, checkpoint …
    job B: [mb] ─┼─► one pass of the ───┼─► B
    job C: [mb] ─┘   base model         └─► C

A training that ends or fails leaves; the next one that waits takes its place. Checkpoints say who
was there (``roll.py``), so that a group which was killed, resumed with the same jobs, gives the
same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import alog
import torch

from luthier.errors import InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.group_record import tell_if_parted
from luthier.training.fusion.fused_network import FusedNetwork, FusedPart, why_not_fused
from luthier.training.fusion.live_job import LiveJob, Outcome, attempt
from luthier.training.fusion.passes import passes_of
from luthier.training.fusion.roll import Roll, Standing
from luthier.training.job import TuningJob
from luthier.training.loop import open_run
from luthier.training.processes.parallel import current_group
from luthier.training.run import TrainingRun

log = alog.use_channel(__name__)

#: Most tokens of a pass, given what checkpoints say the group had before, if they say anything.
PassTokens: TypeAlias = Callable[[int | None], int]

#: Tokens of one pass above which more of them make none of them cheaper; see docs/training.md.
MAX_PASS_TOKENS = 1024
#: Trainings that are under way at once.
MAX_LIVE_JOBS = 32


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def tune_many(
    base_model: BaseModel,
    jobs: Iterable[TuningJob],
    *,
    max_pass_tokens: int | PassTokens = MAX_PASS_TOKENS,
    max_live_jobs: int = MAX_LIVE_JOBS,
    on_end: Callable[[int, Outcome], None] = _ignore,
    on_alone: Callable[[int, str], None] = _ignore,
) -> list[Outcome]:
    """Learn several adapters of one base model, each as ``tune`` would.

    A micro-batch that is longer than the threshold goes alone. A training whose method or options
    keep it from sharing is run to its end when its turn to join comes.

    Jobs that go on from checkpoints of one group, with the same limits, end with the bits that it
    would have ended with. What was done since the oldest of the checkpoints is computed again. If
    they are not that group, results are its own up to rounding, and the log says so once.

    Args:
        base_model: Stays as it is; others may generate from it meanwhile.
        jobs: Each with an adapter and folders of its own; taken one by one as there is room.
        max_pass_tokens: Most tokens of a pass that several trainings share, virtual ones included;
            0 shares none. A function is given what a group that is taken up had before, and says
            1 or more.
        max_live_jobs: Trainings under way at once. Each holds its data, gradients and optimizer.
        on_end: Told the number of a job, from 0, and its outcome, as soon as it is known.
        on_alone: Told the number of a job that cannot share, and why, before it is run.

    Returns:
        As many outcomes as jobs, in their order: the result, or the error that ended this training
        and no other.

    Raises:
        InvalidInputError: If a limit is out of range.
    """
    fixed = None if callable(max_pass_tokens) else max_pass_tokens
    if (fixed is not None and fixed < 0) or max_live_jobs < 1:
        raise InvalidInputError(
            f"'max_pass_tokens' must be 0 or more and 'max_live_jobs' 1 or more, got "
            f"{fixed} and {max_live_jobs}"
        )
    with contextlib.ExitStack() as stack:
        group = _Group(
            base_model,
            enumerate(jobs),
            max_pass_tokens,
            max_live_jobs,
            on_end=on_end,
            on_alone=on_alone,
        )
        stack.callback(group.close)
        group.take_up()
        while group.fill():
            group.run_round()
        return [group.outcomes[number] for number in sorted(group.outcomes)]


class _Group:
    """The trainings that are under way, and how the others ended."""

    def __init__(
        self,
        base_model: BaseModel,
        waiting: Iterator[tuple[int, TuningJob]],
        max_pass_tokens: int | PassTokens,
        max_live_jobs: int,
        *,
        on_end: Callable[[int, Outcome], None],
        on_alone: Callable[[int, str], None],
    ) -> None:
        self.live: list[LiveJob] = []
        self.outcomes: dict[int, Outcome] = {}
        self._base_model = base_model
        self._waiting = waiting
        #: Opened before their turn to join, because of what their checkpoints know.
        self._opened: list[LiveJob] = []
        self._given_pass_tokens = max_pass_tokens
        self._max_live_jobs = max_live_jobs
        self._on_end = on_end
        self._on_alone = on_alone
        self._network: FusedNetwork | None = None

    def take_up(self) -> None:
        """Open the first jobs, and find out where the group stands."""
        num_unfinished = 0
        while num_unfinished < self._max_live_jobs and (live := self._open_next()):
            self._opened.append(live)
            num_unfinished += not live.standing.is_done
        standings = [live.standing for live in self._opened]
        self._max_pass_tokens = self._decided_pass_tokens(standings)
        self._roll = Roll(max_pass_tokens=self._max_pass_tokens, max_live_jobs=self._max_live_jobs)
        for live, place in zip(self._opened, self._roll.take_up(standings), strict=True):
            live.place = place
        # As they joined; those that are new in the order in which they came.
        self._opened.sort(key=lambda live: (live.place is None, live.place, live.number))

    def fill(self) -> bool:
        """Let those that wait join, as far as there is room.

        Returns:
            Whether anybody is under way.
        """
        while len(self.live) < self._max_live_jobs:
            live = self._opened.pop(0) if self._opened else self._open_next()
            if live is None:
                break
            self._join(live)
        return bool(self.live)

    def run_round(self) -> None:
        """One micro-batch of every training."""
        roll = self._roll
        if all(live.is_replayed for live in self.live):
            # Nobody learns before the first of them goes on.
            roll.round = min(live.goes_on_at for live in self.live)
            for live in self.live:
                self._replay(live)
        else:
            self._run_parts()
            roll.round += 1
        for live in [each for each in self.live if each.goes_on_at == roll.round]:
            if live.is_replayed:
                self._go_on(live, None)

    def close(self) -> None:
        """End what is still under way, after an error that belongs to nobody."""
        with contextlib.ExitStack() as stack:
            for live in (*self.live, *self._opened):
                stack.callback(live.stack.close)
                stack.callback(live.stop_replaying)

    def _open_next(self) -> LiveJob | None:
        """The next training that can share passes. One that cannot is run to its end at once."""
        for number, job in self._waiting:
            stack = contextlib.ExitStack()
            live = attempt(lambda: self._open(number, job, stack))  # noqa: B023 - called at once
            if isinstance(live, Exception):
                self._end(number, stack, live)
                continue
            reason = self._why_alone(live.run)
            if reason is None:
                return live
            tell_if_parted(live.standing.record, live.standing.num_done)
            log.info("job %d goes alone: %s", number + 1, reason)
            self._on_alone(number, reason)
            self.live.append(live)
            self._go_on(live, None)
            while live in self.live:
                self._run_alone(live)
        return None

    def _join(self, live: LiveJob) -> None:
        """Start a training, up to its first micro-batch; or let it wait for its round."""
        roll, standing = self._roll, live.standing
        self.live.append(live)
        if roll.is_over(standing, live.place):
            live.place = None
            self._go_on(live, None)
            return
        live.place = place = roll.join(standing, live.place)
        live.run.group_record = lambda: roll.record(place)
        live.goes_on_at = roll.joined(place) + standing.num_done
        self._shared_network().add(live.run.learner)
        if live.goes_on_at <= roll.round:
            self._go_on(live, None)
        else:
            self._replay(live)

    def _replay(self, live: LiveJob) -> None:
        assert live.place is not None
        live.replay(self._roll.round - self._roll.joined(live.place))

    def _run_parts(self) -> None:
        """The round's micro-batches, in as few passes as the limit allows."""
        waiting: list[tuple[LiveJob, FusedPart]] = []
        alone: list[LiveJob] = []
        for live in list(self.live):
            live.last_round = self._roll.round
            micro_batch = attempt(live.take)
            if isinstance(micro_batch, Exception):
                self._leave(live, micro_batch)
                continue
            part = self._shared_network().pack(micro_batch)
            if part is None or part.num_tokens > self._max_pass_tokens:
                alone.append(live)
            else:
                waiting.append((live, part))
        for indices in passes_of([part for _, part in waiting], self._max_pass_tokens):
            together = [waiting[index] for index in indices]
            if len(together) == 1:
                alone.append(together[0][0])
            elif any(not live.is_replayed for live, _ in together):
                self._run_together(together)
        for live in alone:
            if not live.is_replayed:
                self._run_alone(live)

    def _run_together(self, several: Sequence[tuple[LiveJob, FusedPart]]) -> None:
        network, parts = self._shared_network(), [part for _, part in several]
        passed = attempt(lambda: network.forward(parts))
        if isinstance(passed, Exception):
            # Whose fault it is shows when each goes alone; no gradient was changed yet.
            log.warning("a shared pass failed, its trainings go alone: %s", passed)
            for live, _ in several:
                if not live.is_replayed:
                    self._run_alone(live)
            return
        total, loss_sums = passed
        error = attempt(total.backward)
        for (live, _), loss_sum in zip(several, loss_sums, strict=True):
            if live.is_replayed:
                continue
            if isinstance(error, Exception):
                self._leave(live, error)
            else:
                self._go_on(live, loss_sum)

    def _run_alone(self, live: LiveJob) -> None:
        loss_sum = attempt(live.micro_batch.backward)
        if isinstance(loss_sum, Exception):
            self._leave(live, loss_sum)
        else:
            self._go_on(live, loss_sum)

    def _go_on(self, live: LiveJob, loss_sum: torch.Tensor | None) -> None:
        """Give a training its loss, None to start it; it may end by that."""
        found = attempt(lambda: live.go_on(loss_sum))
        if found is not None:
            self._leave(live, found)

    def _leave(self, live: LiveJob, outcome: Outcome) -> None:
        self.live.remove(live)
        live.stop_replaying()
        if live.place is not None:
            self._roll.leave(live.place, took_part=live.last_round == self._roll.round)
            self._shared_network().remove(live.run.learner)
        self._end(live.number, live.stack, outcome)

    def _end(self, number: int, stack: contextlib.ExitStack, outcome: Outcome) -> None:
        """Close what a training opened, and keep how it ended."""
        error = attempt(stack.close)
        if isinstance(error, Exception) and not isinstance(outcome, Exception):
            outcome = error
        if isinstance(outcome, Exception):
            log.warning("job %d ended early, the others go on: %s", number + 1, outcome)
        self.outcomes[number] = outcome
        self._on_end(number, outcome)

    def _open(self, number: int, job: TuningJob, stack: contextlib.ExitStack) -> LiveJob:
        for live in (*self.live, *self._opened):
            if live.job.adapter is job.adapter:
                raise InvalidInputError(f"job {live.number + 1} already learns this adapter")
            if job.run_folder is not None and live.job.run_folder == job.run_folder:
                folder = str(job.run_folder)
                raise InvalidInputError(f"job {live.number + 1} already writes into {folder!r}")
        run = stack.enter_context(open_run(self._base_model, job))
        steps = stack.enter_context(contextlib.closing(run.steps()))
        standing = Standing(
            run.mark(), run.course.progress.num_batches, run.is_done, run.group_before
        )
        return LiveJob(number, job, stack, run, steps, standing)

    def _why_alone(self, run: TrainingRun) -> str | None:
        if self._given_pass_tokens == 0:
            return "'max_pass_tokens' is 0"
        if not current_group().is_alone:
            return "several processes share the rows of each of its updates"
        return why_not_fused(self._base_model, run.learner)

    def _decided_pass_tokens(self, standings: Sequence[Standing]) -> int:
        if not callable(self._given_pass_tokens):
            return self._given_pass_tokens
        records = [each.record for each in standings if each.record is not None]
        newest = max(records, key=lambda record: record.generation, default=None)
        return self._given_pass_tokens(None if newest is None else newest.max_pass_tokens)

    def _shared_network(self) -> FusedNetwork:
        if self._network is None:
            self._network = FusedNetwork(self._base_model)
        return self._network
