"""Streams that no row names: given up and collected through committed commands only.

They come from uploads that failed (`discard`), at the start from rows of an earlier run of this
node, and, where this node leads a range, from runs of other nodes that ended. Each is first given
up by the state machine's own command, in bounded steps; only when that said "abandoned" are its
frames released.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from o3storage.cluster import _kinds, _records
from o3storage.cluster._errors import ClusterError
from o3storage.cluster._reading import READ_FAULTS
from o3storage.runtime import Logger

if TYPE_CHECKING:
    from o3storage.cluster._node import Node

SCAN_ROWS = 256
"""Rows looked at in a step."""
PAUSE_S = 0.005
"""Between steps, so that a large clean-up leaves the loop to requests."""
RETRY_S = 5.0
"""After a refusal."""
FAILED_S = 30.0
"""After what nobody thought of."""
CLOSE_STREAMS = 32
"""Streams released by one command, which stays below 1 MiB with the longest keys."""
LOOK_S = 60.0
"""How often a range's leader looks for streams of other nodes' runs that ended."""
CALL_S = 5.0
MAX_WAITING = 65_536
"""Given-up streams remembered; the rest is found at the next start."""

_log = Logger("collector")


class Collector:
    """`start`, `add`, `close`."""

    def __init__(self, node: Node) -> None:
        self.collected = 0
        self._node = node
        self._rows: deque[bytes] = deque()
        self._routes: dict[bytes, bytes] = {}
        """Row -> route of its stream, where this node opened it in this run."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._scanned = False
        self._look_due = False

    @property
    def waiting(self) -> int:
        return len(self._rows)

    def start(self) -> None:
        if self._node.replication is not None:
            self._node.replication.peers.serve(_kinds.SESSION, self._serve_session)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="collector")

    def add(self, row_key: bytes, route: bytes = b"") -> None:
        if len(self._rows) < MAX_WAITING:
            self._rows.append(row_key)
            if route:
                self._routes[row_key] = route
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
                if self._look_due:
                    self._look_due = False
                    await self._scan_others()
                while self._rows:
                    await self._collect()
                    await asyncio.sleep(PAUSE_S)
            except (ClusterError, *READ_FAULTS):
                await asyncio.sleep(RETRY_S)
                continue
            except Exception as error:
                # (Nobody would collect anything until the next start.)
                _log.error("streams.not_collected", error=error)
                await asyncio.sleep(FAILED_S)
                continue
            self._wake.clear()
            if self._rows:
                continue
            if self._node.replication is None:
                await self._wake.wait()
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK_S)
            except TimeoutError:
                self._look_due = True

    async def _serve_session(self, _: int, body: memoryview) -> bytes:
        """Which run of this node this is."""
        if len(body):
            raise ValueError("a question with a body")
        return self._node.session.to_bytes(8, "big")

    async def _scan_others(self) -> None:
        """Where this node leads, queue the rows of runs that ended: of nodes that left, and of
        nodes that say they are another run now. Whoever cannot be asked keeps its streams."""
        low = bytes((_records.TABLE_OPEN_STREAM,))
        high = bytes((_records.TABLE_OPEN_STREAM + 1,))
        node = self._node
        current: dict[int, int | None] = {node.session >> 32: None}
        while True:
            rows = await node.store.scan(low, high, SCAN_ROWS)
            for key, value in rows:
                row = _records.unpack_stream_row(key, value)
                replica = node.replica_here(node.group_of(row.route))
                if replica is None or not replica.leads:
                    continue
                owner = row.session >> 32
                if owner not in current:
                    current[owner] = await self._ask_session(owner)
                session = current[owner]
                if session is not None and session != row.session:
                    self.add(key)
            if len(rows) < SCAN_ROWS:
                return
            low = rows[-1][0] + b"\x00"
            await asyncio.sleep(PAUSE_S)

    async def _ask_session(self, owner: int) -> int | None:
        """The session of the node with these low bits; 0 if there is no such node any more, None
        if it cannot be asked."""
        node = self._node
        assert node.replication is not None
        # Whoever opened a stream that is applied here was a member before that.
        await node.catch_up()
        for member in node.members():
            if member & 0xFFFFFFFF == owner:
                try:
                    answer = await node.replication.peers.call(
                        member, _kinds.SESSION, b"", timeout_s=CALL_S
                    )
                except ClusterError:
                    return None
                return int.from_bytes(answer, "big") if len(answer) == 8 else None
        return 0

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
                row = await self._row(key)
                if row is not None:
                    state = await self._abandon(row)
                    group = node.group_of(row.route)
                    ended.setdefault((group, state == "abandoned"), []).append(key)
            for (_, release), keys in ended.items():
                route = b"\x00" + keys[0][1:]
                command = _records.encode_close(keys, release=release)
                await node.commit(route, command)
                self.collected += len(keys) if release else 0
            for key in taken:
                self._routes.pop(key, None)
        except BaseException:
            # Each step may be repeated: try all of them again later.
            self._rows.extend(taken)
            raise

    async def _row(self, key: bytes) -> _records.OpenStream | None:
        """None: nobody need care for it any more. Raises StoreError, BadBlock."""
        route = self._routes.get(key)
        if route is not None and not self._node.holds(route):
            # It lies elsewhere, if it was written; to give up what is not there does no harm.
            return _records.OpenStream(key, route, key[-16:], self._node.session, 0)
        value = await self._node.store.get(key)
        return None if value is None else _records.unpack_stream_row(key, value)

    async def _abandon(self, row: _records.OpenStream) -> str:
        node = self._node
        while True:
            command = node.machine.abandon(row.route, row.stream, node.clock.wall_ns())
            result = await node.submit(command)
            state: str = result.state
            if state != "more":
                return state
            await asyncio.sleep(PAUSE_S)
