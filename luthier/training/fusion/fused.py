"""Several trainings over one frozen base model, together in one process.

Each keeps its options, data, order, optimizer, schedule, callbacks, folders; only forward and
backward of the base are shared. In each round, every training hands out its next micro-batch; they
are laid into as few passes as the token threshold allows, and each gets its loss back::

    job A: [mb] ─┐                      ┌─► A goes on: clip, update, evaluation, checkpoint …
    job B: [mb] ─┼─► one pass of the ───┼─► B
    job C: [mb] ─┘   base model         └─► C

A training that ends or fails leaves; the next one that waits takes its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import alog
import torch

from luthier.errors import InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.job import TuningJob
from luthier.training.learner import MicroBatch
from luthier.training.loop import open_run
from luthier.training.networks.fused_network import FusedNetwork, FusedPart, why_not_fused
from luthier.training.processes.parallel import current_group
from luthier.training.results import TrainingResult
from luthier.training.run import Steps, TrainingRun

log = alog.use_channel(__name__)

_T = TypeVar("_T")

#: How a training ended: well, or with which error.
Outcome: TypeAlias = TrainingResult | Exception

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
    max_pass_tokens: int = MAX_PASS_TOKENS,
    max_live_jobs: int = MAX_LIVE_JOBS,
    on_end: Callable[[int, Outcome], None] = _ignore,
    on_alone: Callable[[int, str], None] = _ignore,
) -> list[Outcome]:
    """Learn several adapters of one base model, each as ``tune`` would.

    A micro-batch that is longer than the threshold goes alone. A training whose method or options
    keep it from sharing is run to its end when its turn to join comes.

    Args:
        base_model: Stays as it is; others may generate from it meanwhile.
        jobs: Each with an adapter and folders of its own; taken one by one as there is room.
        max_pass_tokens: Most tokens of a pass that several trainings share, virtual ones included;
            0 shares none.
        max_live_jobs: Trainings under way at once. Each holds its data, gradients and optimizer.
        on_end: Told the number of a job, from 0, and its outcome, as soon as it is known.
        on_alone: Told the number of a job that cannot share, and why, before it is run.

    Returns:
        As many outcomes as jobs, in their order: the result, or the error that ended this training
        and no other.

    Raises:
        InvalidInputError: If a limit is out of range.
    """
    if max_pass_tokens < 0 or max_live_jobs < 1:
        raise InvalidInputError(
            f"'max_pass_tokens' must be 0 or more and 'max_live_jobs' 1 or more, got "
            f"{max_pass_tokens} and {max_live_jobs}"
        )
    with contextlib.ExitStack() as stack:
        group = _Group(base_model, max_pass_tokens, on_end=on_end, on_alone=on_alone)
        stack.callback(group.close)
        waiting = enumerate(jobs)
        while True:
            while len(group.live) < max_live_jobs and (joining := next(waiting, None)):
                group.join(*joining)
            if not group.live:
                break
            group.run_round()
        return [group.outcomes[number] for number in sorted(group.outcomes)]


@dataclass(eq=False)
class _LiveJob:
    """A training under way.

    Args:
        number: Of the job, from 0.
        job: As it came.
        stack: Closes its callbacks.
        run: Its loop.
        steps: Of the run.
        micro_batch: To be run next.
    """

    number: int
    job: TuningJob
    stack: contextlib.ExitStack
    run: TrainingRun
    steps: Steps
    micro_batch: MicroBatch = field(init=False)


#: Whose micro-batch waits for a pass, and the micro-batch.
_Waiting: TypeAlias = tuple[_LiveJob, FusedPart]


class _Group:
    """The trainings that are under way, and how the others ended."""

    def __init__(
        self,
        base_model: BaseModel,
        max_pass_tokens: int,
        *,
        on_end: Callable[[int, Outcome], None],
        on_alone: Callable[[int, str], None],
    ) -> None:
        self.live: list[_LiveJob] = []
        self.outcomes: dict[int, Outcome] = {}
        self._base_model = base_model
        self._max_pass_tokens = max_pass_tokens
        self._on_end = on_end
        self._on_alone = on_alone
        self._network: FusedNetwork | None = None

    def join(self, number: int, job: TuningJob) -> None:
        """Start a training, up to its first micro-batch; one that cannot share is run to its end
        at once."""
        stack = contextlib.ExitStack()
        run = _attempt(lambda: self._open(stack, job))
        if isinstance(run, Exception):
            self._end(number, stack, run)
            return
        steps = stack.enter_context(contextlib.closing(run.steps()))
        live = _LiveJob(number, job, stack, run, steps)
        self.live.append(live)
        reason = self._why_alone(run)
        if reason is None:
            self._shared_network().add(run.learner)
        else:
            log.info("job %d goes alone: %s", number + 1, reason)
            self._on_alone(number, reason)
        self._go_on(live, None)
        while reason is not None and live in self.live:
            self._run_alone(live)

    def run_round(self) -> None:
        """One micro-batch of every training."""
        parts: list[_Waiting] = []
        alone: list[_LiveJob] = []
        for live in self.live:
            part = self._shared_network().pack(live.micro_batch)
            if part is None or part.num_tokens > self._max_pass_tokens:
                alone.append(live)
            else:
                parts.append((live, part))
        for together in _passes(parts, self._max_pass_tokens):
            if len(together) == 1:
                alone.append(together[0][0])
            else:
                self._run_together(together)
        for live in alone:
            self._run_alone(live)

    def close(self) -> None:
        """End what is still under way, after an error that belongs to nobody."""
        for live in self.live:
            live.stack.close()

    def _run_together(self, several: Sequence[_Waiting]) -> None:
        network, parts = self._shared_network(), [part for _, part in several]
        passed = _attempt(lambda: network.forward(parts))
        if isinstance(passed, Exception):
            # Whose fault it is shows when each goes alone; no gradient was changed yet.
            log.warning("a shared pass failed, its trainings go alone: %s", passed)
            for live, _ in several:
                self._run_alone(live)
            return
        total, loss_sums = passed
        error = _attempt(total.backward)
        for (live, _), loss_sum in zip(several, loss_sums, strict=True):
            if isinstance(error, Exception):
                self._leave(live, error)
            else:
                self._go_on(live, loss_sum)

    def _run_alone(self, live: _LiveJob) -> None:
        loss_sum = _attempt(live.micro_batch.backward)
        if isinstance(loss_sum, Exception):
            self._leave(live, loss_sum)
        else:
            self._go_on(live, loss_sum)

    def _go_on(self, live: _LiveJob, loss_sum: torch.Tensor | None) -> None:
        """Give a training its loss; it updates, evaluates, saves, up to its next micro-batch."""
        found = _attempt(lambda: _next_of(live.steps, loss_sum))
        if isinstance(found, Exception):
            self._leave(live, found)
        elif found is None:
            self._leave(live, _attempt(live.run.finish))
        else:
            live.micro_batch = found

    def _leave(self, live: _LiveJob, outcome: Outcome) -> None:
        self.live.remove(live)
        if self._network is not None:
            self._network.remove(live.run.learner)
        self._end(live.number, live.stack, outcome)

    def _end(self, number: int, stack: contextlib.ExitStack, outcome: Outcome) -> None:
        """Close what a training opened, and keep how it ended."""
        error = _attempt(stack.close)
        if isinstance(error, Exception) and not isinstance(outcome, Exception):
            outcome = error
        if isinstance(outcome, Exception):
            log.warning("job %d ended early, the others go on: %s", number + 1, outcome)
        self.outcomes[number] = outcome
        self._on_end(number, outcome)

    def _open(self, stack: contextlib.ExitStack, job: TuningJob) -> TrainingRun:
        for live in self.live:
            if live.job.adapter is job.adapter:
                raise InvalidInputError(f"job {live.number + 1} already learns this adapter")
            if job.run_folder is not None and live.job.run_folder == job.run_folder:
                folder = str(job.run_folder)
                raise InvalidInputError(f"job {live.number + 1} already writes into {folder!r}")
        return stack.enter_context(open_run(self._base_model, job))

    def _why_alone(self, run: TrainingRun) -> str | None:
        if self._max_pass_tokens == 0:
            return "'max_pass_tokens' is 0"
        if not current_group().is_alone:
            return "several processes share the rows of each of its updates"
        return why_not_fused(self._base_model, run.learner)

    def _shared_network(self) -> FusedNetwork:
        if self._network is None:
            self._network = FusedNetwork(self._base_model)
        return self._network


def _attempt(action: Callable[[], _T]) -> _T | Exception:
    """What the action gives, or the error that it ends with."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001  the job: its error is its outcome
        return error


def _next_of(steps: Steps, loss_sum: torch.Tensor | None) -> MicroBatch | None:
    """The next micro-batch, None after the last."""
    try:
        return steps.send(loss_sum)  # type: ignore[arg-type]  # the first is None
    except StopIteration:
        return None


def _passes(parts: Sequence[_Waiting], limit: int) -> list[list[_Waiting]]:
    """Who shares a pass with whom: one kind, and where rows are padded, rows of like width."""
    groups: dict[Hashable, list[_Waiting]] = {}
    for waiting in parts:
        part = waiting[1]
        # Within a class no row is padded to more than twice its width.
        groups.setdefault((part.kind, part.width.bit_length()), []).append(waiting)
    passes = []
    for group in groups.values():
        widest = max(part.width for _, part in group)
        sizes = [
            part.num_tokens if not widest else part.num_tokens // part.width * widest
            for _, part in group
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
