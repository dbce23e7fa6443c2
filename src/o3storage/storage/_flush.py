"""Flushing: rows go to the index's tables, the replay floor rises (DESIGN 4, "Replay").

Interface: `Flusher.flush`, `due`, `floor`.

Invariants
- The index freezes its rows in the step that takes the mark, and its manifest edit waits for the
  outcomes of those rows to be synced in the log: a mark never promises what a rebuild from the
  volumes could not repeat.
- The floor is the lowest log volume with an entry above its group's flushed index, or with
  anything written at or after the mark; hard states are restated in each volume.
"""

from __future__ import annotations

import asyncio
import bisect

from o3storage.runtime.disk import DiskError, DiskFull
from o3storage.storage._core import Core
from o3storage.storage._groups import pack_place, unpack_place
from o3storage.storage._log import LogWriter
from o3storage.storage._mark import Mark, VolumeCount
from o3storage.storage._types import StoreFull
from o3storage.storage._volume import VolumeKind


class Flusher:
    """Takes marks and flushes the index, one at a time."""

    def __init__(self, core: Core, log: LogWriter, mark: Mark) -> None:
        self.core = core
        self.log = log
        self.mark = mark
        """What the tables hold."""
        self.entries_since = 0
        self._running: asyncio.Future[None] | None = None

    def due(self) -> bool:
        options = self.core.options
        return (
            self.core.index.memtable_bytes >= options.flush_memtable_bytes
            or self.log.bytes_since_flush >= options.flush_log_bytes
            or self.entries_since >= options.flush_entries
        )

    def would_free(self) -> bool:
        """A flush would let go of log volumes: worth it early when space is short."""
        return any(
            volume.sealed and volume.kind is VolumeKind.LOG and number >= self.mark.floor_volume
            for number, volume in self.core.volumes.items()
        )

    def floor(self) -> int:
        """Lowest log volume that replay would need if a flush finished now."""
        floor = min(self.log.volume.volume, self.log.settled_volume)
        for group in self.core.groups.values():
            if group.missing or group.uncertain:
                return min(floor, self.mark.floor_volume)
            at = group.applied_index + 1 - group.first_index
            if 0 <= at < len(group.places):
                # Not the first of them: one that rot had taken came back to a later volume.
                place = min(filter(None, group.places[at:]), default=0)
                floor = min(floor, unpack_place(place)[0]) if place else floor
        return floor

    async def flush(self) -> None:
        """Everything applied before the call is in tables. Calls share a flush that has not begun.
        Raises StoreOutOfService, StoreFull (nothing changed)."""
        while self._running is not None:
            await asyncio.shield(self._running)
        self.core.check_service()
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = running
        try:
            await self._flush()
        finally:
            self._running = None
            running.set_result(None)

    async def _flush(self) -> None:
        core = self.core
        mark = Mark(
            sequence=core.sequence,
            floor_volume=self.floor(),
            applied={number: group.applied_index for number, group in core.groups.items()},
            volumes={
                number: VolumeCount(
                    volume.size_bytes if volume.sealed else 0,
                    max(0, volume.placed_bytes - volume.unplaced_bytes),
                    volume.dead_bytes,
                    volume.change_bytes,
                )
                for number, volume in core.volumes.items()
            },
        )
        entries, self.entries_since = self.entries_since, 0
        log_bytes, self.log.bytes_since_flush = self.log.bytes_since_flush, 0
        try:
            # the index freezes its rows before the first wait inside
            await core.index.flush(mark.encode(), barrier=self._settle)
        except (DiskFull, StoreFull) as error:
            self.entries_since += entries
            self.log.bytes_since_flush += log_bytes
            raise StoreFull(f"no space to flush the index: {error}") from error
        except DiskError as error:
            raise core.fault(error) from error
        self.mark = mark
        core.stats.flushes += 1
        await self._forget_entries()

    def needed_by_followers(self) -> int:
        """Lowest log volume with entries that a follower still needs, within the limit."""
        lowest = self.log.volume.volume
        for group in self.core.groups.values():
            if group.keep_from is None:
                continue
            at = max(group.keep_from, group.first_index) - group.first_index
            while at < len(group.places) and not group.places[at]:
                at += 1
            if at < len(group.places):
                lowest = min(lowest, unpack_place(group.places[at])[0])
        # beyond the limit a follower gets a snapshot
        return max(lowest, self._newest(self.core.options.keep_log_bytes))

    def _newest(self, limit_bytes: int) -> int:
        """Lowest of the newest log volumes that together hold no more than this."""
        kept = 0
        lowest = self.log.volume.volume
        for number in sorted(self.core.volumes, reverse=True):
            volume = self.core.volumes[number]
            if volume.kind is VolumeKind.LOG:
                kept += volume.size_bytes
                if kept > limit_bytes:
                    break
                lowest = min(lowest, number)
        return lowest

    async def _forget_entries(self) -> None:
        """Places of entries that nobody asks for any more leave memory (promise P8)."""
        keep = min(
            self.mark.floor_volume,
            self.needed_by_followers(),
            self._newest(self.core.options.reload_log_bytes),
        )
        for group in self.core.groups.values():
            # applied entries are durable: their places are known and ascend
            applied = max(0, group.applied_index + 1 - group.first_index)
            drop = bisect.bisect_left(group.places, pack_place(keep, 0), 0, applied)
            if drop > 0 and not group.missing:
                group.forget_below(group.first_index + drop)
        for group in list(self.core.groups.values()):
            more = group.uncache()
            while more:
                await asyncio.sleep(0)
                more = group.uncache()

    async def _settle(self) -> None:
        """All outcomes made before the mark are durable."""
        self.core.check_service()
        await self.log.settle()
