"""The job pool on the event loop: native threads do the work, one eventfd wakes the loop."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any, TypeVar, cast

from o3storage import _native
from o3storage.runtime.jobs import Job

T = TypeVar("T")

FILE_THREADS = 4
"""File jobs that can block at a time: one log sync, one bulk write, two reads."""
PURE_THREADS = 2
"""Computing jobs at a time; beside the loop's own thread more only add switches on two cores."""
DRAIN_JOBS = 256
"""Completions handled in one step of the loop; the rest come in the next."""


class JobPool:
    """Runs native jobs (`_native.Job`) on threads that never take the interpreter lock.

    Jobs of one kind start in order of submission and complete in any order. A future that is
    cancelled neither ends its job nor returns the job's buffers early.
    """

    def __init__(self, threads: int = FILE_THREADS, *, pure_threads: int = PURE_THREADS) -> None:
        self._native = _native.Pool(threads, pure_threads)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def start(self) -> None:
        """Listen for completions on the running loop. Call once, before the first job."""
        if self._loop is not None:
            raise RuntimeError("the job pool was started already")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._native.event_fd, self._native.drain, DRAIN_JOBS)

    async def close(self) -> None:
        """Wait for all submitted jobs, then end the threads. Idempotent."""
        if self._loop is None or self._closed:
            return
        self._closed = True
        self._native.close()
        # Cancelled futures do not tell when their job is done; the counter does.
        idle = self._loop.create_future()

        def drain() -> None:
            self._native.drain(DRAIN_JOBS)
            if not self._native.pending and not idle.done():
                idle.set_result(None)

        self._loop.add_reader(self._native.event_fd, drain)
        drain()
        await idle
        self._loop.remove_reader(self._native.event_fd)

    @property
    def pending(self) -> int:
        """Jobs submitted and not completed yet."""
        return self._native.pending

    def submit(self, job: Job[T], *, background: bool = False) -> asyncio.Future[T]:
        """Queue `job`. The future gets its result or exception. With `background` a computing job
        runs at low priority, behind all that requests wait for. RuntimeError when closed."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("start the job pool before submitting to it")
        future: asyncio.Future[T] = loop.create_future()
        self._native.submit(cast("_native.Job[Any]", job), future, background)
        return future

    async def lookup(self, host: str, port: int) -> list[tuple[int, str, int]]:
        """All addresses of `host`: (family, address, port), in the resolver's order. An address
        given as such needs no look-up. OSError if the name cannot be resolved."""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return await self.submit(_native.lookup_job(host, port))
        return [(2 if literal.version == 4 else 10, str(literal), port)]


class NativeJobs:
    """`Jobs` on a pool."""

    __slots__ = ("_background", "_pool")

    def __init__(self, pool: JobPool, *, background: bool = False) -> None:
        self._pool = pool
        self._background = background

    def run(self, job: Job[T]) -> asyncio.Future[T]:
        """See `Jobs.run`."""
        return self._pool.submit(job, background=self._background)
