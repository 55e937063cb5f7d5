"""Runs each training in a process of its own on this machine, with a queue before it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import alog

from luthier.errors import CapacityError, ConflictError, JobNotFoundError, LuthierError
from luthier.exit_status import cause_of_death
from luthier.runtime.jobs.base import Job, JobExecutor, JobState, JobStore
from luthier.runtime.jobs.job_folder import JobFolder

log = alog.use_channel(__name__)

#: What the worker reads to know whose death ends it too.
PARENT_PID_VARIABLE = "LUTHIER_PARENT_PID"
#: Python modules, comma separated, whose import registers the modules that can be trained.
MODULE_PACKAGES_VARIABLE = "LUTHIER_MODULE_PACKAGES"

_CANCELED = "canceled by request"
_STOPPED = "stopped with the server"


@dataclass
class _Run:
    """A job that has left the queue."""

    job: Job
    task: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    stop_reason: str = ""


class LocalProcessExecutor(JobExecutor):
    """One child process per job, at most ``max_running`` of them. Lives on one event loop.

    A child is the leader of its own session, gets low CPU priority, and dies with this process.

    Args:
        store: Where the jobs' states are kept.
        max_running: Jobs that run at the same time.
        max_waiting: Jobs that may wait; more are refused.
        cancel_grace_seconds: Time from SIGTERM to SIGKILL.
        environment: Variables that the workers get beside this process's own.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        max_running: int,
        max_waiting: int,
        cancel_grace_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._cancel_grace_seconds = cancel_grace_seconds
        self._environment = dict(environment or {})
        self._waiting: deque[Job] = deque()
        self._running: dict[str, _Run] = {}
        self._is_stopped = False

    def submit(self, job: Job) -> None:
        """Queue a job; it starts at once if there is room."""
        if self._is_stopped:
            raise CapacityError("the server is stopping and takes no trainings")
        has_room = len(self._running) < self._max_running
        if not has_room and len(self._waiting) >= self._max_waiting:
            raise CapacityError(
                f"{len(self._running)} trainings run and {len(self._waiting)} wait, "
                f"at most {self._max_running} and {self._max_waiting} may",
                retry_after_seconds=60,
            )
        self._waiting.append(self._acknowledged(job))
        self._start_next()

    def _acknowledged(self, job: Job) -> Job:
        """The job as the store has it: new, or put back."""
        try:
            self._store.get(job.job_id)
        except JobNotFoundError:
            self._store.add(job)
            return job
        return self._store.move(job.job_id, JobState.QUEUED)

    async def cancel(self, job_id: str) -> Job:
        """Stop a job and wait until it has stopped."""
        return await self._end(job_id, _CANCELED)

    async def stop(self) -> None:
        """Stop every job that waits or runs."""
        self._is_stopped = True
        jobs = [job.job_id for job in self._waiting] + list(self._running)
        await asyncio.gather(*(self._end(job_id, _STOPPED) for job_id in jobs))

    async def _end(self, job_id: str, reason: str) -> Job:
        job = self._store.get(job_id)
        if job in self._waiting:
            self._waiting.remove(job)
            return self._store.move(job_id, JobState.CANCELED, reasons=(reason,))
        run = self._running.get(job_id)
        if run is not None and run.task is not None:
            run.stop_reason = run.stop_reason or reason
            if run.process is not None:
                await self._terminate(run.process)
            await asyncio.shield(run.task)
        return self._store.get(job_id)

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self._max_running and not self._is_stopped:
            run = _Run(self._waiting.popleft())
            self._running[run.job.job_id] = run
            run.task = asyncio.get_running_loop().create_task(self._run(run))

    async def _run(self, run: _Run) -> None:
        job = run.job
        try:
            self._store.move(job.job_id, JobState.RUNNING)
            log.info("training started: job_id=%s", job.job_id)
            returncode = await self._work(run)
            state, reasons = _ending(run, returncode)
            # Before anybody is told: what is told may be resumed, or looked into, at once.
            await asyncio.to_thread(_tidy, JobFolder(job.folder), state)
        except Exception as error:
            log.error("training not started: job_id=%s", job.job_id, exc_info=error)
            state, reasons = JobState.ERRORED, (f"{LuthierError.code}: the training did not start",)
        finally:
            self._running.pop(job.job_id, None)
        # A durable store may have been told by somebody else; the first word stands.
        with contextlib.suppress(ConflictError):
            self._store.move(job.job_id, state, reasons=reasons)
        log.info("training ended: job_id=%s state=%s", job.job_id, state.name)
        self._start_next()

    async def _work(self, run: _Run) -> int:
        """Run the worker to its end; its exit status."""
        folder = JobFolder(run.job.folder)
        folder.forget_outcome()  # of a run before this one
        with folder.log_file.open("ab") as output:
            run.process = await asyncio.create_subprocess_exec(
                *_command(folder.path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment, PARENT_PID_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        if run.stop_reason:
            await self._terminate(run.process)
        return await run.process.wait()

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        """Ask the worker's whole session to end, and make it end after the grace."""
        _signal_session(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._cancel_grace_seconds)
        except TimeoutError:
            _signal_session(process, signal.SIGKILL)
            await process.wait()


def _tidy(folder: JobFolder, state: JobState) -> None:
    """Remove what nobody needs; what did not complete keeps what it can be resumed from."""
    try:
        if state is JobState.COMPLETED:
            folder.remove_data()
        else:
            folder.remove_unfinished()
    except OSError as error:
        log.warning("files of a training stay: job_id=%s", folder.path.name, exc_info=error)


def _command(folder: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "luthier.runtime.jobs.worker", str(folder))


def _signal_session(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _ending(run: _Run, returncode: int) -> tuple[JobState, tuple[str, ...]]:
    """What the end of the worker says about the job."""
    outcome = JobFolder(run.job.folder).read_outcome()
    if outcome is not None and outcome.is_complete:
        return JobState.COMPLETED, ()
    if run.stop_reason:
        return JobState.CANCELED, (run.stop_reason,)
    if outcome is not None:
        return JobState.ERRORED, (f"{outcome.word}: {outcome.message}",)
    return JobState.ERRORED, (
        f"training_failed: the training process {cause_of_death(returncode)}",
    )
