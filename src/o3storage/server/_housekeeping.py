"""Work that nobody asks for: chores of the catalog, in bounded steps between requests.

Parts of aborted and replaced uploads, completed uploads older than a day, rows of deleted buckets,
deletions of buckets that a crash interrupted. All of it is committed commands; doing a step twice
or late does no harm, so one node simply does what it finds due.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from o3storage.catalog import (
    CatalogError,
    Procedure,
    chores,
    drive,
    pending_buckets,
    resume_delete,
)
from o3storage.cluster import StorageFull, Unavailable
from o3storage.runtime import Clock, Logger

if TYPE_CHECKING:
    from o3storage.cluster import Node

INTERVAL_S = 20.0
"""How long garbage may wait before anybody looks; S3 promises nothing about it."""
MOST_RANGES = 100
"""Ranges looked into in a round, each by a question to its leader; the turn of others comes in the
next ones. A thousand idle ranges would else take 0.7 % of a core."""
PAUSE_S = 0.01
"""Between steps, so that a large clean-up leaves the loop to requests."""

_log = Logger("housekeeping")


class Housekeeping:
    """A background loop over the chores of all ranges; `stop` ends it between two steps."""

    def __init__(
        self,
        node: Node,
        clock: Clock,
        interval_s: float = INTERVAL_S,
        mine: Callable[[], bool] = lambda: True,
    ) -> None:
        """`mine`: whether this node is the one of its cluster that does it."""
        self._mine = mine
        self._node = node
        self._clock = clock
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._last_range = 0
        """That was looked into."""
        self.steps = 0
        """Commands submitted since the start, for metrics."""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="housekeeping")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if not self._mine():
                continue
            try:
                await self.round(MOST_RANGES)
            except (Unavailable, StorageFull):
                continue  # it is all still due at the next round
            except Exception as error:
                # One row that cannot be read must not end all chores until the next start.
                _log.error("housekeeping.failed", reason=f"{type(error).__name__}: {error}")

    async def round(self, most_ranges: int | None = None) -> int:
        """Do everything that is due now, in so many ranges at most, those first whose turn it is;
        returns the number of steps."""
        before = self.steps
        for bucket_id, name, gone in await self._node.query(pending_buckets()):
            await self._swallow(resume_delete(bucket_id, name, gone, self._clock.wall_ns()))
        groups = sorted(self._node.key_ranges())
        turn = bisect_right(groups, self._last_range)
        for group in (groups[turn:] + groups[:turn])[:most_ranges]:
            self._last_range = group
            after = b""
            while True:
                query = chores(self._clock.wall_ns(), after, group=group)
                commands, after = await self._node.query(query)
                for command in commands:
                    await self._finish(command)
                if not after:
                    break
        return self.steps - before

    async def _finish(self, command: Any) -> None:
        while True:
            try:
                result = await self._node.submit(command)
            except CatalogError:
                return  # no longer due
            self.steps += 1
            if getattr(result, "done", True):
                return
            await asyncio.sleep(PAUSE_S)

    async def _swallow(self, steps: Procedure) -> None:
        try:
            await drive(self._node, steps)
            self.steps += 1
        except CatalogError:
            return  # not empty after all: the bucket lives on
