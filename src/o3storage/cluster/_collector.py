"""Streams that no row names: given up and collected through committed commands only.

They come from uploads that failed (`discard`) and, at the start, from rows of an earlier run of
this node. Each is first given up by the state machine's own command, in bounded steps; only when
that said "abandoned" are its frames released.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from o3storage.cluster import _records
from o3storage.cluster._errors import ClusterError
from o3storage.storage import StoreError

if TYPE_CHECKING:
    from o3storage.cluster._node import Node

SCAN_ROWS = 256
"""Rows looked at in a step."""
PAUSE_S = 0.005
"""Between steps, so that a large clean-up leaves the loop to requests."""
RETRY_S = 5.0
"""After a refusal."""
CLOSE_STREAMS = 32
"""Streams released by one command."""
MAX_WAITING = 65_536
"""Given-up streams remembered; the rest is found at the next start."""


class Collector:
    """`start`, `add`, `close`."""

    def __init__(self, node: Node) -> None:
        self.collected = 0
        self._node = node
        self._rows: deque[bytes] = deque()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._scanned = False

    @property
    def waiting(self) -> int:
        return len(self._rows)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="collector")

    def add(self, row_key: bytes) -> None:
        if len(self._rows) < MAX_WAITING:
            self._rows.append(row_key)
            self._wake.set()

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """First what an earlier run left, then whatever is added."""
        low = bytes((_records.TABLE_OPEN_STREAM,))
        high = bytes((_records.TABLE_OPEN_STREAM + 1,))
        while True:
            try:
                if not self._scanned and self._node.replication is not None:
                    # What an earlier run had proposed may not be applied here yet.
                    await self._node.catch_up()
                while not self._scanned:
                    low = await self._scan(low, high)
                    self._scanned = not low
                    await asyncio.sleep(PAUSE_S)
                while self._rows:
                    await self._collect()
                    await asyncio.sleep(PAUSE_S)
            except (ClusterError, StoreError):
                await asyncio.sleep(RETRY_S)
                continue
            self._wake.clear()
            if not self._rows:
                await self._wake.wait()

    async def _scan(self, low: bytes, high: bytes) -> bytes:
        """Queue a page of rows of sessions that are over. Where the next page begins, or b""."""
        node = self._node
        alone = node.replication is None
        rows = await node.store.scan(low, high, SCAN_ROWS)
        for key, value in rows:
            session = _records.unpack_stream_row(key, value).session
            if session != node.session and (alone or session >> 32 == node.session >> 32):
                self._rows.append(key)
        return rows[-1][0] + b"\x00" if len(rows) == SCAN_ROWS else b""

    async def _collect(self) -> None:
        """Give up some streams, then release their frames by one command."""
        node = self._node
        taken = [self._rows.popleft() for _ in range(min(len(self._rows), CLOSE_STREAMS))]
        try:
            ended: dict[tuple[int, bool], list[bytes]] = {}
            for key in taken:
                value = await node.store.get(key)
                if value is not None:
                    row = _records.unpack_stream_row(key, value)
                    state = await self._abandon(row)
                    replica = node.replica_of(row.route)
                    ended.setdefault((replica.group, state == "abandoned"), []).append(key)
            for (_, release), keys in ended.items():
                route = b"\x00" + keys[0][1:]
                command = _records.encode_close(keys, release=release)
                await node.replica_of(route).submit(command)
                self.collected += len(keys) if release else 0
        except BaseException:
            # Each step may be repeated: try all of them again later.
            self._rows.extend(taken)
            raise

    async def _abandon(self, row: _records.OpenStream) -> str:
        node = self._node
        while True:
            command = node.machine.abandon(row.route, row.stream, node.clock.wall_ns())
            result = await node.submit(command)
            state: str = result.state
            if state != "more":
                return state
            await asyncio.sleep(PAUSE_S)
