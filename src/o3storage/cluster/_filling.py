"""Entries that a leader no longer has in memory, read back from the disk for a member that lacks
them, with the small frames that ride with them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o3storage.cluster import _records
from o3storage.cluster._reading import READ_FAULTS, entries_of
from o3storage.raft.core import Entry, Fetch, Fetched

if TYPE_CHECKING:
    from o3storage.cluster._replica import Replica
    from o3storage.cluster._replication import Replication

FETCH_BYTES = 64 << 10
"""Entries read back at a time: with small objects of 4 KiB beside them, 1 MiB."""
FRAMES_PER_TURN = 64
"""Small frames read in one turn of the loop: a millisecond or two."""


class Filling:
    """Of one replica, in a group with others."""

    def __init__(self, replica: Replica, node: Replication) -> None:
        self._replica = replica
        self._node = node
        self._core = replica.core
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], None] = {}

    def want(self, wanted: Fetch) -> None:
        """The core asks for entries: it gets them by Fetched."""
        name = f"fetch entries of range {self._replica.group}"
        task = self._loop.create_task(self._fill(wanted), name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill(self, wanted: Fetch) -> None:
        """Beside requests, if the group goes on without the member that lacks them."""
        pace, member = self._node.catch_up, wanted.peer
        progress = self._core.progress.get(member)
        if progress is None or wanted.hole:
            await self._read(wanted)
            return
        pace.lacks(self._replica.group, member, self._core.log.last - progress.match)
        paced = await pace.begin(lambda: not self._goes_on_without(member))
        try:
            await self._read(wanted, paced=paced)
        finally:
            if paced:
                await pace.end()

    async def _read(self, wanted: Fetch, *, paced: bool = False) -> None:
        replica = self._replica
        max_bytes = min(wanted.max_bytes, FETCH_BYTES)
        try:
            found = await entries_of(
                self._node.store, replica.group, wanted.low, wanted.high, max_bytes
            )
        except READ_FAULTS:
            found = []  # the core has to know, or it waits for them for ever
        found = await self.with_frames(found, wanted.max_bytes, paced=paced)
        replica.step(Fetched(wanted.peer, found, wanted.hole))

    def _goes_on_without(self, member: int) -> bool:
        """A majority of others that can be reached has all that is committed."""
        core, peers = self._core, self._node.peers
        holders = [core.id] if core.log.stable >= core.commit else []
        for node, progress in core.progress.items():
            if node != member and progress.match >= core.commit and peers.is_up(node):
                holders.append(node)
        return core.configuration.decided(holders)

    async def with_frames(
        self, entries: Sequence[Entry], max_bytes: int, *, paced: bool = False
    ) -> list[Entry]:
        """Entries read back from the log for a follower, at least one and then as many as with
        their small frames are `max_bytes`; those are at hand on return, as far as they are still
        here. (More would push each other out again, and go without.)"""
        found: list[Entry] = []
        size = 0
        for number, entry in enumerate(entries, start=1):
            if size >= max_bytes:
                break
            if paced:
                await self._node.catch_up.rest()
            elif number % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)
            riding_bytes = 0
            carried = _records.carried(entry.data) if _records.carries(entry) else None
            if carried is not None and carried.rides:
                frame = self._node.riding.get(carried.stream)
                if frame is None:
                    frame = self._node.read_riding_now(carried.stream)
                if frame is None:
                    frame = await self._node.read_riding(carried.stream)
                if frame is not None:
                    self._node.riding.put(frame)
                    riding_bytes = len(frame.data)
            found.append(Entry(entry.index, entry.term, entry.kind, entry.data, riding_bytes))
            size += len(entry.data) + riding_bytes
        return found
