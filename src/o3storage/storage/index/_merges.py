"""Merges in the background, at a bounded rate, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from o3storage.runtime.disk import DiskFull

from ._build import Source, build_tables, discard_tables
from ._manifest import Edit
from ._plan import Plan, may_forget_deletions, next_plan, retired_drops
from ._table import TableInfo
from ._tables import Tables
from ._types import BadBlock, IndexOptions, IndexStats

FULL_RETRY_S = 5.0
"""After a merge found no space: the store frees some, or somebody adds some."""


class Merger:
    """Plans merges over `Tables`, carries them out and has them recorded in the manifest."""

    def __init__(
        self,
        tables: Tables,
        options: IndexOptions,
        stats: IndexStats,
        on_bad_block: Callable[[BadBlock], None] | None,
    ) -> None:
        self._tables = tables
        self._options = options
        self._stats = stats
        self._on_bad_block = on_bad_block
        self._cursors: dict[int, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._lock = asyncio.Lock()
        self._debt_s = 0.0
        self._no_space = False
        """The last merge found no space: flushes do not wait for the next one."""
        self.failure: Exception | None = None
        """Why merging has stopped."""

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Tables changed: look again."""
        self._wake.set()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_below(self, level0_tables: int) -> None:
        """Until level 0 holds fewer tables, or merging has stopped."""
        while (
            self._task is not None
            and not self._task.done()
            and self.failure is None
            and not self._no_space
            and len(self._tables.view.level0) >= level0_tables
            and (self._lock.locked() or self._plan() is not None)
        ):
            self._progress.clear()
            self._wake.set()
            await self._progress.wait()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                merged = await self.merge(paced=True)
                self._no_space = False
            except BadBlock as error:
                merged = True  # the table rests now: look for other work
                if self._on_bad_block is not None:
                    self._on_bad_block(error)
            except DiskFull:
                self._no_space = True
                self._progress.set()
                await asyncio.sleep(FULL_RETRY_S)
                continue
            except Exception as error:
                self.failure = error  # the disk is out of service: the next flush reports it
                self._progress.set()
                return
            self._progress.set()
            if not merged:
                await self._wake.wait()

    def _plan(self) -> Plan | None:
        tables = self._tables
        return next_plan(tables.view, tables.state.drops, self._options, self._cursors)

    async def merge(self, *, paced: bool) -> bool:
        """The most urgent merge; False if none is due. Raises BadBlock, DiskFull, DiskFault."""
        async with self._lock:
            tables = self._tables
            view, drops = tables.view, list(tables.state.drops)
            plan = next_plan(view, drops, self._options, self._cursors)
            if plan is None:
                retired = retired_drops(view, drops)
                if not retired:
                    return False
                await tables.change(Edit(retired=retired))
                return True
            gone = [table.info.number for table in plan.tables()]
            if plan.discard:
                await tables.change(Edit(removed=gone))
            elif plan.move:
                await tables.change(Edit(moved=[(number, plan.target) for number in gone]))
                self._stats.moves += len(gone)
            else:
                await self._rewrite(plan, gone, paced=paced)
            return True

    async def _rewrite(self, plan: Plan, gone: list[int], *, paced: bool) -> None:
        tables = self._tables
        view, drops = tables.view, list(tables.state.drops)
        applied = tables.state.sequence
        sources = [Source(source, drops) for source in plan.upper]
        if plan.lower:
            sources.append(Source(plan.lower, drops))
        view.pin()
        for table in plan.tables():
            table.merging = True
        built: list[TableInfo] = []
        merged = False
        try:
            built = await build_tables(
                tables.context,
                sources=sources,
                drop_deleted=may_forget_deletions(view, plan),
                drops=drops,
                applied=applied,
                pace=self._pace if paced else _no_pause,
            )
            await tables.change(Edit(added=[(plan.target, info) for info in built], removed=gone))
            merged = True
        finally:
            if not merged and tables.failure is None:
                await discard_tables(tables.context, built)
            for table in plan.tables():
                table.merging = False
            view.unpin()
        self._stats.merges += 1
        self._stats.merged_bytes += sum(info.size_bytes for info in built)

    def _pace(self, read_bytes: int) -> float:
        """Seconds to wait after reading so much. None while level 0 is about to stall writers."""
        if (
            len(self._tables.view.level0)
            >= (self._options.level0_tables + self._options.level0_stall_tables) // 2
        ):
            return 0.0
        self._debt_s += read_bytes / self._options.merge_bytes_per_s
        if self._debt_s < 0.005:
            return 0.0
        wait_s, self._debt_s = self._debt_s, 0.0
        return wait_s


def _no_pause(_: int) -> float:
    return 0.0
