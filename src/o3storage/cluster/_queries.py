"""Queries: the half of a node that answers them, from its own replicas or by other nodes'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

from o3storage.cluster._barriers import NO_COUNT
from o3storage.cluster._bounded import within
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._range_rows import EVERYTHING, RangeMoved
from o3storage.cluster._reading import MISS, READ_FAULTS, read_now, read_row
from o3storage.cluster._replica import Replica
from o3storage.cluster._routing import Routing
from o3storage.runtime import let_others
from o3storage.runtime.state_machine import Read, Scan
from o3storage.storage import Miss, Snapshot

T_co = TypeVar("T_co", covariant=True)

STEP_ROWS = 256
"""Rows that `query` reads before it lets others in: with what is made of them it takes an eighth of
a millisecond, and a turn of the loop a fifth of that. Beside listings of a thousand keys a GET's
p99 was 1.6 ms with 256 and 2.1 to 2.4 with 512; a listing's p50 2.5 and 2.0."""
DISK_SCAN_ROWS = 64
MAX_DISK_SCANS = 16
"""Scans of so many rows that are read from the disk at a time: each keeps its rows, which may be of
32 KiB, until it has all of them."""
SCAN_ROWS = 16
"""What a scan counts for besides its rows: it begins by a search in each table."""


class Query(Protocol[T_co]):
    """What `query` runs: a fresh read-only generator each time it is called (catalog.Query)."""

    @property
    def route(self) -> bytes:
        """The row key that decides which range answers; b"" for range 0."""
        ...

    @property
    def group(self) -> int | None:
        """The range that answers, if not the one of the route."""
        ...

    def __call__(self, border: bytes | None = None) -> Generator[Read, Any, T_co]:
        """`border`: where the answering range ends, a row key without its table byte; None: it
        does not."""
        ...


class Queries(Routing):
    """What `_node.Node` does with queries."""

    _disk_scans: asyncio.Semaphore

    def query_now(self, query: Query[T_co], count: int = NO_COUNT) -> T_co | Miss:
        """The answer, if it needs neither the disk nor other nodes; else MISS: await `query`.
        `count`: see `Reads`. Raises the query's own errors."""
        group = query.group
        if group is None:
            group = self._ranges.group_of(query.route)
        replica = self._replicas.get(group)
        if replica is None or not (replica.reads_now() or replica.reads_after(count)):
            return Miss.MISS
        return self._read_memory(query, replica)

    @staticmethod
    def _steps(query: Query[T_co], replica: Replica) -> Generator[Read, Any, T_co]:
        """The query's reads, of what the range holds."""
        span = replica.span
        if span is None or span == EVERYTHING:
            return query()
        return within(query(span.high), span)

    def _read_memory(self, query: Query[T_co], replica: Replica) -> T_co | Miss:
        store = self.store
        generator = self._steps(query, replica)
        try:
            read = next(generator)
            while True:
                found = read_now(store, read)
                if found is MISS:
                    generator.close()
                    return Miss.MISS
                read = generator.send(found)
        except StopIteration as stop:
            answer: T_co = stop.value
            return answer
        except READ_FAULTS as error:
            raise Unavailable(str(error)) from error

    async def query(
        self,
        query: Query[T_co],
        count: int | None = None,
        ahead: Callable[[T_co], bytes] | None = None,
    ) -> T_co:
        """The answer, as of one instant between call and return; with a `count` (see `Reads`) as of
        one since that was noted. `ahead`: the route of what will be asked next, by the answer.
        Raises the query's own errors, Unavailable."""
        if count is None:
            here = self._replicas.get(
                self._ranges.group_of(query.route) if query.group is None else query.group
            )
            if here is not None and here.reads_now():
                return await self._answer(query, here)
        end_s = 0.0
        while True:
            version = self._ranges.version
            group = self._ranges.group_of(query.route) if query.group is None else query.group
            replica = self._replicas.get(group)
            if replica is None or group in self._ranges.elsewhere:
                where = await self.find_range(query.route, query.group)
                if isinstance(where, int):
                    try:
                        elsewhere: T_co = await self._elsewhere.query(where, query)
                        return elsewhere
                    except RangeMoved:
                        end_s = await self._moved_away(version, end_s)
                        continue
                replica = where
            if count is None or not replica.reads_after(count):
                try:
                    await self._wait_to_read(query, replica, count, ahead)
                except Unavailable:
                    if self.replica_here(replica.group) is replica:
                        raise
                    continue  # the replica left this node meanwhile
            if query.group is not None or self._ranges.group_of(query.route) == replica.group:
                break
        return await self._answer(query, replica)

    async def _wait_to_read(
        self,
        query: Query[T_co],
        replica: Replica,
        count: int | None,
        ahead: Callable[[T_co], bytes] | None,
    ) -> None:
        """Return when the replica may answer, and most likely the one that is read next. Raises
        Unavailable."""
        other = None
        if ahead is not None and count is not None and not replica.reads_now():
            other = self._read_next(query, replica, ahead)
            if other is not None:
                other.expect_read(count)
        await replica.barrier(count)
        if other is not None and count is not None and not other.reads_after(count):
            # It was asked in the same turn: most likely it is answered by now.
            try:
                await other.barrier(count)
            except Unavailable:
                if self.replica_here(other.group) is other:
                    raise
                # It left this node meanwhile; what is read next is asked of those who hold it.
            # (What has happened to this one while the other was waited for?)
            await replica.barrier(count)

    async def answer(self, query: Query[T_co], replica: Replica) -> T_co:
        """As `query`, of a range with a replica here. Raises also RangeMoved: it does not hold the
        query's keys, or not any more."""
        await replica.barrier()
        span = replica.span
        if query.group is None:
            if span is None or not span.holds(query.route[1:]):
                raise RangeMoved("the key belongs to another range now")
        elif query.group != replica.group:
            raise RangeMoved("another range was asked")
        return await self._answer(query, replica)

    async def _answer(self, query: Query[T_co], replica: Replica) -> T_co:
        """The answer as of now. What is in memory is read at once, STEP_ROWS at a time; before the
        first wait this instant is pinned, for what was read until then is of the same."""
        store = self.store
        snapshot: Snapshot | None = None
        weight = 0
        try:
            steps = self._steps(query, replica)
            read = next(steps)
            while True:
                found = read_now(store, read, snapshot)
                if found is MISS:
                    if snapshot is None:
                        snapshot = store.snapshot()
                    if type(read) is Scan and read.limit >= DISK_SCAN_ROWS:
                        async with self._disk_scans:
                            found = await read_row(store, read, snapshot)
                    else:
                        found = await read_row(store, read, snapshot)
                read = steps.send(found)
                if type(found) is list:
                    weight += len(found) + SCAN_ROWS
                    found = None  # (many queries wait, and rows may be large)
                    if weight >= STEP_ROWS:
                        weight = 0
                        if snapshot is None:
                            snapshot = store.snapshot()
                        await let_others()
        except StopIteration as stop:
            answer: T_co = stop.value
            return answer
        except READ_FAULTS as error:
            raise Unavailable(str(error)) from error
        finally:
            if snapshot is not None:
                snapshot.release()

    def _read_next(
        self, query: Query[T_co], replica: Replica, ahead: Callable[[T_co], bytes]
    ) -> Replica | None:
        """Of the range that will be read next, by what is here of the answer. (If that is not so
        any more, the right one is asked later.)"""
        groups = self._ranges.groups()
        if len(groups) == 1:
            return self.replica_here(groups[0])
        try:
            found = self._read_memory(query, replica)
        except Exception:
            return None  # the query says so once it may
        return None if found is MISS else self.replica_here(self._ranges.group_of(ahead(found)))
