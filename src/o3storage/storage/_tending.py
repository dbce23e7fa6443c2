"""What a store does by itself: looks at the space, flushes, compacts, scrubs.

Two tasks, each in steps that leave the loop to requests. Neither outlives a fault of the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from o3storage.runtime.disk import DiskError
from o3storage.storage._bulk import BulkWriter
from o3storage.storage._compaction import Compactor, free_wanted
from o3storage.storage._core import Core
from o3storage.storage._flush import Flusher
from o3storage.storage._frames import Frames
from o3storage.storage._log import LogWriter
from o3storage.storage._rows import SCRUB_KEY
from o3storage.storage._scrub import BadFrame, ScrubState, scrub
from o3storage.storage._space import REFRESH_S, SpaceAccount
from o3storage.storage._span_repair import SpanRepair
from o3storage.storage._types import StoreError, StoreFull
from o3storage.storage.index import BadBlock, IndexFailure

AFTER_DEFECT_S = 5.0
"""Until flushes are tried again."""
TICK_S = 0.25
"""How often it is looked whether a flush is due."""


class Tender:
    """`start` it once the store is open; `close` it before the writers."""

    def __init__(
        self,
        core: Core,
        *,
        log: LogWriter,
        bulk: BulkWriter,
        frames: Frames,
        flusher: Flusher,
        compactor: Compactor,
        space: SpaceAccount,
        spans: SpanRepair,
    ) -> None:
        self.bad_listeners: list[Callable[[BadFrame], None]] = []
        """Told what the scrub finds bad."""
        self._core = core
        self._log = log
        self._bulk = bulk
        self._frames = frames
        self._flusher = flusher
        self._compactor = compactor
        self._space = space
        self._spans = spans
        self._scrubbed = ScrubState()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for work in (self._tend(), self._tend_volumes()):
            self._tasks.append(loop.create_task(work))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def compact(self) -> int:
        """See `Store.compact`."""
        if self._core.out_of_service:
            raise self._core.refusal()
        wanted = free_wanted(self._space)
        volume = self._compactor.candidate(ratio=0.2 if wanted else None)
        if volume is None and wanted and self._flusher.would_free():
            # Small objects lie in the log: what was deleted of them is let go by a flush.
            await self._flusher.flush()
            volume = self._compactor.candidate(ratio=0.2)
        if volume is None:
            if wanted and self._compactor.is_worth_it(self._bulk.volume, 0.2):
                self._bulk.retire()
            return 0
        try:
            return await self._compactor.compact(volume)
        except DiskError as error:
            volume.keep = True
            raise StoreFull(f"{volume.path} cannot be read for compaction: {error}") from error

    async def _tend(self) -> None:
        """Look at the space, flush when it is due."""
        since = REFRESH_S
        while not self._core.out_of_service:
            since += TICK_S
            try:
                if since >= REFRESH_S:
                    since = 0.0
                    await self._space.refresh()
                if self._flusher.due():
                    with contextlib.suppress(StoreError, IndexFailure):
                        await self._flusher.flush()
            except Exception as error:
                _tell_of_defect("flushes", error)
                await asyncio.sleep(AFTER_DEFECT_S)
            await asyncio.sleep(TICK_S)

    async def _tend_volumes(self) -> None:
        """Compact what is mostly garbage, scrub the rest, round after round."""
        core = self._core
        with contextlib.suppress(StoreError, DiskError):
            await self._frames.reap_left_over()
        await self._load_scrub()
        while not core.out_of_service:
            await asyncio.sleep(core.options.compaction_every_s)
            try:
                freed = 1
                while freed:
                    freed = await self.compact()
                if self._scrubbed.due(core.clock.wall_ns(), core.options.scrub_every_s):
                    await self._go_on_scrubbing()
            except (StoreError, DiskError):
                continue  # full: later; out of service: the loop ends
            except BadBlock as bad:
                self._spans.wanted(bad)
            except Exception as error:
                _tell_of_defect("compaction or scrub", error)

    async def _load_scrub(self) -> None:
        found: bytes | None = None
        with contextlib.suppress(BadBlock):  # (then it begins anew)
            found = await self._core.index.get(SCRUB_KEY)
        if found is not None:
            self._scrubbed = ScrubState.decode(found)
            return
        self._scrubbed = ScrubState(0, self._core.clock.wall_ns())
        self._log.note_scrub(self._scrubbed.encode())

    async def _go_on_scrubbing(self) -> None:
        """The pass that an earlier run began, or a new one."""

        def at(volume: int) -> None:
            self._scrubbed.next_volume = volume
            self._log.note_scrub(self._scrubbed.encode())

        damaged: dict[int, None] = {}

        def bad(found: BadFrame) -> None:
            if found.stream:
                damaged[found.volume] = None
            for listener in self.bad_listeners:
                listener(found)

        await scrub(self._core, bad, start=self._scrubbed.next_volume, on_volume=at)
        if not self._core.out_of_service:
            self._scrubbed = ScrubState(0, self._core.clock.wall_ns())
            self._log.note_scrub(self._scrubbed.encode())
        for number, volume in self._core.volumes.items():
            if number not in damaged:
                volume.keep = False  # what was bad in it may be repaired: compaction looks again


def _tell_of_defect(what: str, error: Exception) -> None:
    """Of the program, which is told of and outlived: without this work nothing seems wrong until
    the disk is full."""
    asyncio.get_running_loop().call_exception_handler(
        {"message": f"{what}: a defect, tried again", "exception": error}
    )
