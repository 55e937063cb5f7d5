"""Folders of jobs that ended long ago go away; until then a job can be resumed and looked at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import alog

from luthier.errors import ConflictError
from luthier.runtime.jobs.base import JobState, JobStore
from luthier.runtime.jobs.job_folder import JobFolder

log = alog.use_channel(__name__)

#: What tells when a job was last alive.
_SIGNS_OF_LIFE = ("job.json", "metrics.jsonl", "worker.log", "outcome.json")
_LONGEST_PAUSE_SECONDS = 3600.0


class JobRetention:
    """Removes the folders of ended jobs, those of servers before this one included.

    Args:
        jobs_folder: Holds them; need not exist.
        store: Knows which jobs wait or run.
        keep_seconds: How long after its last sign of life a job's folder stays.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        jobs_folder: Path,
        store: JobStore,
        *,
        keep_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs_folder = jobs_folder
        self._store = store
        self._keep_seconds = keep_seconds
        self._clock = clock

    async def run(self) -> None:
        """Sweep now and again, until it is cancelled."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, max(1.0, self._keep_seconds / 4)))

    def sweep(self) -> list[str]:
        """Remove what is due.

        Returns:
            The ids of the jobs whose folders are gone.
        """
        active = {job.job_id for job in self._store.list_jobs((JobState.QUEUED, JobState.RUNNING))}
        removed = []
        for path in _folders(self._jobs_folder):
            if path.name not in active and self._is_due(path) and _remove(path):
                removed.append(path.name)
        if removed:
            log.info("folders of ended trainings are removed: %d", len(removed))
        return removed

    def _is_due(self, path: Path) -> bool:
        times = [_modified(path / name) for name in _SIGNS_OF_LIFE]
        last = max((each for each in times if each is not None), default=_modified(path))
        return last is not None and self._clock() - last > self._keep_seconds


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _remove(path: Path) -> bool:
    folder = JobFolder(path)
    try:
        with folder.locked():  # another server's worker may live there
            folder.remove()
    except (ConflictError, OSError) as error:
        log.debug("the folder of a training stays: %s", error)
        return False
    return True
