"""Pure jobs in a simulation: the same native code, run in place, completing at a seeded time."""

from __future__ import annotations

import asyncio
import random
from typing import TypeVar

from o3storage.runtime.jobs import Job

from ._loop import SimLoop

T = TypeVar("T")

MAX_JOB_S = 0.002
"""Longest virtual time a pure job takes: about that of merging 1 MiB of rows."""


class SimJobs:
    """`Jobs` without threads. A job runs at its completion time, not when it is handed in, so that
    a caller who changes a lent buffer too early is found out. On an ordinary asyncio loop jobs
    complete in the next turn of the loop."""

    def __init__(self, seed: int | str = 0, *, max_job_s: float = MAX_JOB_S) -> None:
        self._rng = random.Random(f"{seed}/jobs")
        self._max_job_s = max_job_s
        self.completed = 0

    def run(self, job: Job[T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if isinstance(loop, SimLoop):
            loop.call_later(self._rng.random() * self._max_job_s, self._complete, job, future)
        else:
            loop.call_soon(self._complete, job, future)
        return future

    def _complete(self, job: Job[T], future: asyncio.Future[T]) -> None:
        self.completed += 1
        try:
            result = job.run()
        except Exception as error:  # the job's own error belongs to whoever awaits it
            if not future.done():
                future.set_exception(error)
            return
        if not future.done():
            future.set_result(result)
