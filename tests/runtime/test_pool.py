"""The pool's face on the event loop."""

from __future__ import annotations

import asyncio
import socket

import pytest

from o3storage import _native
from o3storage.runtime import JobPool, NativeJobs


def test_jobs_run_in_front_and_in_the_background() -> None:
    async def main() -> None:
        pool = JobPool(2, pure_threads=1)
        with pytest.raises(RuntimeError, match="start the job pool"):
            pool.submit(_native.blake3_job([b""]))
        await pool.start()
        with pytest.raises(RuntimeError, match="already"):
            await pool.start()
        for jobs in (NativeJobs(pool), NativeJobs(pool, background=True)):
            done = await asyncio.gather(
                *(jobs.run(_native.blake3_job([b"%d" % n])) for n in range(300))
            )
            assert done == [_native.blake3(b"%d" % n) for n in range(300)]
        await pool.close()
        await pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            pool.submit(_native.blake3_job([b""]))

    asyncio.run(main())


def test_close_waits_for_jobs_whose_tasks_were_cancelled() -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        for _ in range(400):
            pool.submit(_native.blake3_job([bytes(200_000)])).cancel()
        assert pool.pending > 0
        await pool.close()
        assert pool.pending == 0

    asyncio.run(main())


def test_lookup() -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        assert await pool.lookup("127.0.0.1", 8080) == [(socket.AF_INET, "127.0.0.1", 8080)]
        assert await pool.lookup("::1", 8080) == [(socket.AF_INET6, "::1", 8080)]
        assert (socket.AF_INET, "127.0.0.1", 1) in await pool.lookup("localhost", 1)
        with pytest.raises(OSError, match="cannot resolve"):
            await pool.lookup("name.invalid", 1)
        await pool.close()

    asyncio.run(main())
